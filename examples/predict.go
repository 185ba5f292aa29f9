// A label by Go's standard library.
package main

import (
	"cmp"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

func main() {
	url := cmp.Or(os.Getenv("HOTSWAP_URL"), "http://127.0.0.1:8000") + "/v1/predict"
	body := strings.NewReader(`{"adapter": "sentiment", "input": "A moving, beautifully acted film."}`)
	request, err := http.NewRequest("POST", url, body)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+cmp.Or(os.Getenv("HOTSWAP_API_KEY"), "none"))
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	told, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != 200 {
		log.Fatal(string(told), err)
	}
	fmt.Println(string(told))
}
