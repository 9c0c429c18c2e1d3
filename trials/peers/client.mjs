// One cell of @grpc/grpc-js. Reads a JSON line with what to do, prints a JSON line with what happened.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const asked = JSON.parse(readFileSync(0, "utf8"));
const require = createRequire(asked.modules + "/");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const definition = loader.loadSync(["cellstream/v1/prediction.proto", "cellstream/v1/model.proto"], {
  includeDirs: [asked.protos], longs: Number, enums: String, defaults: true, bytes: Buffer,
});
const { PredictionService, ModelService } = grpc.loadPackageDefinition(definition).cellstream.v1;

const file = (path) => (path ? readFileSync(path) : null);
const credentials = asked.authority
  ? grpc.credentials.createSsl(file(asked.authority), file(asked.key), file(asked.cert))
  : grpc.credentials.createInsecure();
const options = asked.gzip ? { "grpc.default_compression_algorithm": 2 } : {};
const metadata = new grpc.Metadata();
for (const [key, value] of Object.entries(asked.metadata ?? {})) metadata.set(key, value);
for (const [key, value] of Object.entries(asked.metadataBytes ?? {})) metadata.set(key, Buffer.from(value, "base64"));
const deadline = () => new Date(Date.now() + asked.seconds * 1000);

// Values travel here as base64, and to proto-loader as bytes.
const requests = (asked.requests ?? []).map((request) => {
  for (const feed of request.feeds ?? []) if (feed.values) feed.values.data = Buffer.from(feed.values.data, "base64");
  return request;
});

function told(status) {
  const details = status.metadata?.get("grpc-status-details-bin") ?? [];
  return {
    code: status.code,
    message: status.details,
    details: details.map((each) => each.toString("base64")),
  };
}

function predict() {
  const client = new PredictionService(asked.target, credentials, options);
  const call = client.Predict(metadata, { deadline: deadline() });
  const found = { results: [], opened: [] };
  const rest = [...requests];
  const send = () => call.write(rest.shift());
  call.on("data", (response) => {
    found.results.push(...response.results);
    found.opened.push(...response.opened);
    if (asked.cancel && found.opened.length) return call.cancel();
    if (!asked.pingPong || !response.results.length) return;
    if (rest.length) send();
    else call.end();
  });
  call.on("error", () => {}); // the status tells
  call.on("status", (status) => {
    console.log(JSON.stringify({ ...found, ...told(status) }));
    client.close();
  });
  if (asked.pingPong) return send();
  while (rest.length) send();
  if (asked.halfClose) call.end();
}

function getModel() {
  const client = new ModelService(asked.target, credentials, options);
  client.GetModel({ name: asked.model }, metadata, { deadline: deadline() }, (error) => {
    console.log(JSON.stringify(told(error ?? { code: 0, details: "" })));
    client.close();
  });
}

if (asked.model !== undefined) getModel();
else predict();
