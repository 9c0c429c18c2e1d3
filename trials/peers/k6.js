// One cell of k6. Reads the JSON file that ASKED names, prints a JSON line with what happened.
import { Client, Stream } from "k6/net/grpc";
import encoding from "k6/encoding";

const asked = JSON.parse(open(__ENV.ASKED));
const client = new Client();
client.load([asked.protos], "cellstream/v1/prediction.proto", "cellstream/v1/model.proto");

const metadata = { ...(asked.metadata ?? {}) };
for (const [key, value] of Object.entries(asked.metadataBytes ?? {})) {
  metadata[key] = new Uint8Array(encoding.b64decode(value, "std"));
}
const calling = { metadata, timeout: `${asked.seconds * 1000}ms` };

function predict() {
  const found = { results: [], code: 0, message: "" };
  const rest = [...asked.requests];
  const stream = new Stream(client, "cellstream.v1.PredictionService/Predict", calling);
  stream.on("data", (response) => {
    found.results.push(...(response.results ?? []));
    if (!asked.pingPong || !response.results?.length) return;
    if (rest.length) stream.write(rest.shift());
    else stream.end();
  });
  stream.on("error", (error) => Object.assign(found, { code: error.code, message: error.message }));
  stream.on("end", () => {
    console.log(JSON.stringify(found));
    client.close();
  });
  if (asked.pingPong) return stream.write(rest.shift());
  while (rest.length) stream.write(rest.shift());
  if (asked.halfClose) stream.end();
}

function getModel() {
  const { status, error } = client.invoke("cellstream.v1.ModelService/GetModel", { name: asked.model }, calling);
  console.log(JSON.stringify({ code: status, message: error?.message ?? "", details: error?.details ?? [] }));
  client.close();
}

export default function () {
  client.connect(asked.target, asked.tls ? { tls: asked.tls } : { plaintext: true });
  if (asked.model !== undefined) getModel();
  else predict();
}
