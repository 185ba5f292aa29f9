// A summary while it is written: server-sent events by fetch.
const url = process.env.HOTSWAP_URL ?? "http://127.0.0.1:8000";
const answer = await fetch(`${url}/v1/summarize`, {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: `Bearer ${process.env.HOTSWAP_API_KEY ?? "none"}` },
  body: JSON.stringify({
    adapter: "one-line-summary",
    input: "A small music player for the terminal. It runs as a daemon and can be controlled over the network.",
    stream: true,
  }),
});
if (!answer.ok) throw new Error(await answer.text());

let waiting = "";
for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
  const events = (waiting + piece).replaceAll("\r\n", "\n").split("\n\n");
  waiting = events.pop();
  for (const event of events) {
    const name = /^event: (.*)$/m.exec(event)?.[1];
    const data = /^data: (.*)$/m.exec(event)?.[1];
    if (name === "delta") process.stdout.write(JSON.parse(data).delta);
    if (name === "error") throw new Error(data);
    if (name === "done") console.log(`\n${JSON.parse(data).adapter.name}@${JSON.parse(data).adapter.version}`);
  }
}
