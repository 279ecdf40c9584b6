// What users of the official TypeScript SDK write; base URL and key come from the environment alone.
import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import { jsonSchemaOutputFormat } from "@anthropic-ai/sdk/helpers/json-schema";

const client = new Anthropic();
const model = "claude-sonnet-4-6";
const asked = (content) => ({ model, max_tokens: 500, messages: [{ role: "user", content }] });
const called = [];
const weather = betaTool({
  name: "get_weather",
  description: "Tell the weather.",
  inputSchema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  run: ({ city }) => {
    called.push(city);
    return `Sunny in ${city}`;
  },
});
const city = {
  type: "object",
  properties: { name: { type: "string" }, people: { type: "integer" } },
  required: ["name", "people"],
  additionalProperties: false,
};
const error = (call) => call.then(() => ({ error: "" }), (raised) => ({ error: `${raised.status} ${raised.message}` }));

const scenes = {
  async message() {
    const said = await client.messages.create(asked("How are you?"));
    return { text: said.content[0].text, request_id: said._request_id };
  },
  async stream() {
    let pieces = 0;
    const final = await client.messages.stream(asked("How are you?")).on("text", () => pieces++).finalMessage();
    return { text: final.content[0].text, pieces };
  },
  async tool() {
    const final = await client.beta.messages.toolRunner({ ...asked("Use the tool for Ghent"), tools: [weather] });
    return { text: final.content[0].text, called };
  },
  async structured() {
    const said = await client.messages.parse({
      ...asked("Which city?"),
      output_config: { format: jsonSchemaOutputFormat(city) },
    });
    return { value: said.parsed_output };
  },
  async thinking() {
    const thoughtful = { ...asked("How are you?"), max_tokens: 3000, thinking: { type: "enabled", budget_tokens: 1024 } };
    const first = await client.messages.stream(thoughtful).finalMessage();
    const { thinking } = first.content.find((block) => block.type === "thinking");
    const messages = [
      ...thoughtful.messages,
      { role: "assistant", content: first.content },
      { role: "user", content: "And now?" },
    ];
    const second = await client.messages.create({ ...thoughtful, messages });
    return { thought: thinking, text: second.content.at(-1).text };
  },
  async count() {
    return { tokens: (await client.messages.countTokens({ model, messages: asked("Hi").messages })).input_tokens };
  },
  async models() {
    const ids = [];
    for await (const sold of client.models.list({ limit: 3 })) ids.push(sold.id);
    return { ids, one: (await client.models.retrieve(model)).id };
  },
  async beta() {
    const betas = ["context-management-2025-06-27"];
    const said = await client.beta.messages.create({
      ...asked("How are you?"),
      betas,
      context_management: { edits: [{ type: "clear_tool_uses_20250919" }] },
    });
    const { input_tokens } = await client.beta.messages.countTokens({ model, messages: asked("Hi").messages, betas });
    return { text: said.content[0].text, tokens: input_tokens };
  },
  async batch() {
    const requests = [
      { custom_id: "good", params: asked("How are you?") },
      { custom_id: "bad", params: asked("[[sim error=400]] Hi") },
    ];
    let made = await client.messages.batches.create({ requests });
    while (made.processing_status !== "ended") {
      await new Promise((resolve) => setTimeout(resolve, 100));
      made = await client.messages.batches.retrieve(made.id);
    }
    const results = {};
    let text = "";
    for await (const { custom_id, result } of await client.messages.batches.results(made.id)) {
      results[custom_id] = result.type;
      if (result.type === "succeeded") text = result.message.content[0].text;
    }
    let listed = false;
    for await (const one of client.messages.batches.list()) listed ||= one.id === made.id;
    return { status: made.processing_status, results, text, listed };
  },
  async files() {
    const betas = ["files-api-2025-04-14"];
    const file = new File(["What a quiet day."], "day.txt", { type: "text/plain" });
    const made = await client.beta.files.upload({ file, betas });
    const source = { type: "document", source: { type: "file", file_id: made.id } };
    const messages = [{ role: "user", content: [source, { type: "text", text: "How are you?" }] }];
    const said = await client.beta.messages.create({ ...asked("How are you?"), messages, betas });
    const ids = async () => {
      const found = [];
      for await (const one of client.beta.files.list({ betas })) found.push(one.id);
      return found;
    };
    const listed = (await ids()).includes(made.id);
    await client.beta.files.delete(made.id, { betas });
    const gone = !(await ids()).includes(made.id);
    return { id: made.id, size: made.size_bytes, text: said.content[0].text, listed, gone };
  },
  async retry() {
    return { text: (await client.messages.create(asked("[[sim fail_first=1 error=529]] How are you?"))).content[0].text };
  },
  async refused() {
    return await error(client.messages.create({ ...asked("Hi"), model: "claude-hologram-9" }));
  },
  async poor() {
    return await error(client.messages.create(asked("Hi")));
  },
};

console.log(JSON.stringify(await scenes[process.argv[2]]()));
