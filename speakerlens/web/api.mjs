// Shows the OpenAPI description: every call, its parameters and answers, and every type.

const described = await (await fetch("openapi.json")).json();
const part = (id) => document.getElementById(id);

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function typeOf(schema) {
  if (schema.$ref) {
    const link = element("a", schema.$ref.split("/").at(-1));
    link.href = `#${link.textContent}`;
    return link;
  }
  if (schema.type === "array") return element("span", "list of ", typeOf(schema.items));
  return element("span", schema.contentEncoding ?? schema.contentMediaType ?? schema.format ?? schema.type);
}

function table(of, heads, rows) {
  const head = element("tr", "", ...heads.map((each) => element("th", each)));
  const body = rows.map((cells) => element("tr", "", ...cells.map((each) => element("td", "", each))));
  const made = element("table", "", element("thead", "", head), element("tbody", "", ...body));
  const frame = element("div", "", made);
  [frame.className, frame.tabIndex] = ["wide", 0];
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", `${heads[0]}s of ${of}`);
  return frame;
}

function call(path, method, operation) {
  const shown = element("section", "", element("h2", `${method.toUpperCase()} ${path}`));
  shown.append(element("p", operation.description));
  shown.lastChild.className = "text";
  if (operation.parameters) {
    const rows = operation.parameters.map((each) => [each.name, each.in, typeOf(each.schema), each.description ?? ""]);
    shown.append(table(operation.summary, ["Parameter", "In", "Type", "Meaning"], rows));
  }
  for (const [type, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    const parts = Object.entries(schema.properties ?? {}).map(([name, each]) => [name, typeOf(each)]);
    shown.append(element("p", `${type}: `, schema.$ref ? typeOf(schema) : ""));
    if (parts.length) shown.append(table(`the form of ${operation.summary}`, ["Part", "Type"], parts));
  }
  const answer = operation.responses["200"]?.content["application/json"].schema;
  if (answer) shown.append(element("p", "Answer: ", typeOf(answer)));
  return shown;
}

function type(name, schema) {
  const shown = element("section", "", element("h3", name), element("p", schema.description));
  shown.id = name;
  if (schema.enum) shown.append(element("p", schema.enum.join(", ")));
  const fields = Object.entries(schema.properties ?? {});
  if (fields.length) {
    const rows = fields.map(([field, each]) => [field, typeOf(each), each.description ?? ""]);
    shown.append(table(name, ["Field", "Type", "Meaning"], rows));
  }
  return shown;
}

part("about").textContent = described.info.description;
for (const [path, methods] of Object.entries(described.paths)) {
  for (const [method, operation] of Object.entries(methods)) part("calls").append(call(path, method, operation));
}
part("calls").append(element("h2", "Types"));
for (const [name, schema] of Object.entries(described.components.schemas)) part("calls").append(type(name, schema));
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
