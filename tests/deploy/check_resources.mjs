// Validate custom resources, a JSON list on standard input, by the schemas of @kubernetes-models.
// Its argument is the folder of node_modules.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const packages = {
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
};
let failed = 0;
for (const resource of JSON.parse(readFileSync(0, "utf-8"))) {
  const [group, version] = resource.apiVersion.split("/");
  const file = `${process.argv[2]}/node_modules/${packages[group]}/${group}/${version}/index.js`;
  const { [resource.kind]: Kind } = await import(pathToFileURL(file));
  try {
    new Kind(resource).validate();
    console.log(`${resource.kind}/${resource.metadata.name} is valid`);
  } catch (error) {
    failed += 1;
    console.log(`${resource.kind}/${resource.metadata.name}: ${error.message}`);
  }
}
process.exit(failed ? 1 : 0);
