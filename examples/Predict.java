// A label by the JDK's own client.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

public class Predict {
    public static void main(String[] arguments) throws Exception {
        String url = System.getenv().getOrDefault("HOTSWAP_URL", "http://127.0.0.1:8000");
        String key = System.getenv().getOrDefault("HOTSWAP_API_KEY", "none");
        String body = "{\"adapter\": \"sentiment\", \"input\": \"A moving, beautifully acted film.\"}";
        HttpRequest request = HttpRequest.newBuilder(URI.create(url + "/v1/predict"))
            .header("Content-Type", "application/json")
            .header("Authorization", "Bearer " + key)
            .timeout(Duration.ofSeconds(60))
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        HttpResponse<String> answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != 200) throw new IllegalStateException(answer.body());
        System.out.println(answer.body());
    }
}
