// The JavaScript SDKs of OpenAI and Mistral: node javascript.mjs openai|mistral whole|stream
import { Mistral } from "@mistralai/mistralai";
import OpenAI from "openai";

const [name, mode] = process.argv.slice(2);
const model = "mistral-small-latest";
const messages = [{ role: "user", content: "Hello!" }];

async function askOpenAI(stream) {
  const client = new OpenAI(); // reads OPENAI_BASE_URL and OPENAI_API_KEY
  const result = await client.chat.completions.create({ model, messages, stream });
  if (!stream) return result.choices[0].message.content;
  let text = "";
  for await (const chunk of result) text += chunk.choices[0].delta.content ?? "";
  return text;
}

async function askMistral(stream) {
  const serverURL = process.env.MISTRAL_BASE_URL.replace(/\/v1$/, "");
  const client = new Mistral({ apiKey: process.env.MISTRAL_API_KEY, serverURL });
  if (!stream) return (await client.chat.complete({ model, messages })).choices[0].message.content;
  let text = "";
  for await (const event of await client.chat.stream({ model, messages }))
    text += event.data.choices[0].delta.content ?? "";
  return text;
}

try {
  const ask = { openai: askOpenAI, mistral: askMistral }[name];
  console.log(await ask(mode === "stream"));
} catch (error) {
  console.error(`${error.constructor.name}: ${error.message}`);
  process.exitCode = 1;
}
