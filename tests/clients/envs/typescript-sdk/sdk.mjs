// Drives the TypeScript SDK with base URL and key from the environment, as its users set them; prints what it saw.
import Anthropic from "@anthropic-ai/sdk";

const asked = {
  model: "claude-sonnet-4-6",
  max_tokens: 300,
  messages: [{ role: "user", content: "How are you?" }],
};
const weather = {
  name: "get_weather",
  input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const said = (content) => ({ ...asked, messages: [{ role: "user", content }] });

const scenes = {
  async message(client) {
    const message = await client.messages.create(asked);
    return { text: message.content[0].text, usage: message.usage, requestId: message._request_id };
  },
  async stream(client) {
    const whole = await client.messages.create(asked);
    let text = "";
    const stream = client.messages.stream(asked).on("text", (piece) => (text += piece));
    const final = await stream.finalMessage();
    const events = [];
    for await (const event of await client.messages.create({ ...asked, stream: true })) events.push(event.type);
    return { same: text === whole.content[0].text, stop: final.stop_reason, first: events[0], last: events.at(-1) };
  },
  async tools(client) {
    const messages = [{ role: "user", content: "Use the tool for Ghent" }];
    const first = await client.messages.create({ ...asked, messages, tools: [weather] });
    const use = first.content.find((block) => block.type === "tool_use");
    messages.push({ role: "assistant", content: first.content });
    messages.push({ role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "Sunny" }] });
    const second = await client.messages.create({ ...asked, messages, tools: [weather] });
    return { first: first.stop_reason, second: second.stop_reason };
  },
  async count(client) {
    return await client.messages.countTokens({ model: asked.model, messages: asked.messages });
  },
  async models(client) {
    const ids = [];
    for await (const model of client.models.list({ limit: 2 })) ids.push(model.id);
    return { ids, one: await client.models.retrieve(asked.model) };
  },
  async error(client, fields) {
    return await client.messages.create({ ...asked, ...JSON.parse(fields) });
  },
  async retried(client) {
    const message = await client.messages.create(said("[[sim fail_first=1 error=529]] Hello"));
    return { stop: message.stop_reason };
  },
  async cut(client) {
    return await client.messages.stream(said("[[sim tokens=60 cut_after=8 events_per_chunk=1]]")).finalMessage();
  },
};

const [scene, ...rest] = process.argv.slice(2);
try {
  console.log(JSON.stringify(await scenes[scene](new Anthropic(), ...rest)));
} catch (error) {
  console.log(
    JSON.stringify({
      error: error.constructor.name,
      status: error.status,
      message: error.message,
      requestId: error.requestID ?? error.request_id,
      type: error.error?.error?.type,
    }),
  );
}
