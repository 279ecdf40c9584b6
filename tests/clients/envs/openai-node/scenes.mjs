// What users of OpenAI's SDK for Node.js write; base URL and key come from the environment alone.
import OpenAI from "openai";

const client = new OpenAI();
const model = "claude-sonnet-4-6";
const asked = (content) => ({ model, messages: [{ role: "user", content }] });
const city = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const shape = {
  type: "object",
  properties: { name: { type: "string" }, people: { type: "integer" } },
  required: ["name", "people"],
  additionalProperties: false,
};
const error = (call) => call.then(() => ({ error: "" }), (raised) => ({ error: `${raised.status} ${raised.message}` }));

const scenes = {
  async message() {
    const said = await client.chat.completions.create(asked("How are you?"));
    return { text: said.choices[0].message.content, request_id: said._request_id };
  },
  async stream() {
    const pieces = [];
    for await (const chunk of await client.chat.completions.create({ ...asked("How are you?"), stream: true }))
      pieces.push(chunk.choices[0]?.delta.content ?? "");
    return { text: pieces.join(""), pieces: pieces.length };
  },
  async tool() {
    const called = [];
    const get_weather = {
      name: "get_weather",
      description: "Tell the weather.",
      parameters: city,
      parse: JSON.parse,
      function: (given) => {
        called.push(given.city);
        return `Sunny in ${given.city}`;
      },
    };
    const tools = [{ type: "function", function: get_weather }];
    const runner = client.chat.completions.runTools({ ...asked("Use the tool for Ghent"), tools });
    return { text: await runner.finalContent(), called };
  },
  async structured() {
    const response_format = { type: "json_schema", json_schema: { name: "city", schema: shape, strict: true } };
    const said = await client.chat.completions.create({ ...asked("Which city?"), response_format });
    return { value: JSON.parse(said.choices[0].message.content) };
  },
  async models() {
    const ids = [];
    for await (const sold of client.models.list()) ids.push(sold.id);
    return { ids, one: (await client.models.retrieve(model)).id };
  },
  async retry() {
    const said = await client.chat.completions.create(asked("[[sim fail_first=1 error=529]] How are you?"));
    return { text: said.choices[0].message.content };
  },
  async refused() {
    return await error(client.chat.completions.create({ ...asked("Hi"), model: "claude-hologram-9" }));
  },
  async poor() {
    return await error(client.chat.completions.create(asked("Hi")));
  },
};

console.log(JSON.stringify(await scenes[process.argv[2]]()));
