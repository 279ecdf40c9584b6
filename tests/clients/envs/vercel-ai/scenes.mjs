// What users of the Vercel AI SDK write; base URL and key come from the environment alone.
import { anthropic } from "@ai-sdk/anthropic";
import { generateObject, generateText, stepCountIs, streamText, tool as aiTool } from "ai";
import { z } from "zod";

const model = anthropic("claude-sonnet-4-6");
const called = [];
const weather = aiTool({
  description: "Tell the weather.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => {
    called.push(city);
    return `Sunny in ${city}`;
  },
});
const asked = (prompt) => ({ model, prompt, maxOutputTokens: 500 });

const scenes = {
  async message() {
    return { text: (await generateText(asked("How are you?"))).text };
  },
  async stream() {
    const pieces = [];
    for await (const piece of streamText(asked("How are you?")).textStream) pieces.push(piece);
    return { text: pieces.join(""), pieces: pieces.length };
  },
  async tool() {
    const tools = { weather };
    const { text } = await generateText({ ...asked("Use the tool for Ghent"), tools, stopWhen: stepCountIs(5) });
    return { text, called };
  },
  async structured() {
    const schema = z.object({ name: z.string(), people: z.number() });
    return { value: (await generateObject({ ...asked("Which city?"), schema })).object };
  },
  async retry() {
    return { text: (await generateText(asked("[[sim fail_first=1 error=529]] How are you?"))).text };
  },
  async poor() {
    return { error: await generateText(asked("Hi")).then(() => "", (error) => error.message) };
  },
};

console.log(JSON.stringify(await scenes[process.argv[2]]()));
