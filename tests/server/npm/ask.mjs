// What OpenAI's client for JavaScript is told by a server; the test reads it as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const model = "scripted";
const user = (content) => ({ role: "user", content });
const told = {};

await client.chat.completions.create({ model, messages: [user("My dog is called Rex.")], user: "npm" });
const chat = await client.chat.completions.create({ model, messages: [user("What is my dog called?")], user: "npm" });
told.chat = chat.choices[0].message.content;

const streamed = client.chat.completions.stream({ model, messages: [user("Hi")] });
told.pieces = 0;
for await (const chunk of streamed) told.pieces += chunk.choices[0]?.delta?.content ? 1 : 0;
told.stream = (await streamed.finalChatCompletion()).choices[0].message.content;

const parameters = { type: "object", properties: { place: { type: "string" } }, required: ["place"] };
const tools = [{ type: "function", function: { name: "weather", description: "The weather of a place", parameters } }];
const asked = await client.chat.completions.create({ model, messages: [user("The weather in 'Lyon'?")], tools });
const call = asked.choices[0].message.tool_calls[0];
told.call = [call.function.name, JSON.parse(call.function.arguments)];
const result = { role: "tool", tool_call_id: call.id, content: "7 degrees" };
const talk = [user("The weather in 'Lyon'?"), asked.choices[0].message, result];
told.answered = (await client.chat.completions.create({ model, messages: talk, tools })).choices[0].message.content;

const first = await client.responses.create({ model, input: "My dog is called Rex." });
const second = await client.responses.create({ model, input: "What is my dog called?", previous_response_id: first.id });
told.response = second.output_text;
told.retrieved = (await client.responses.retrieve(second.id)).output_text;
told.input = (await client.responses.inputItems.list(second.id)).data[0].content[0].text;
told.events = [];
const events = await client.responses.create({ model, input: "Hi", stream: true });
for await (const event of events) if (event.type !== told.events.at(-1)) told.events.push(event.type);
await client.responses.delete(first.id);
told.deleted = await client.responses.retrieve(first.id).catch((error) => [error.constructor.name, error.code]);

const { id } = await client.conversations.create({ metadata: { about: "dogs" } });
for (const input of ["My dog is called Rex.", "And?"]) await client.responses.create({ model, input, conversation: id });
told.items = [];
for await (const item of client.conversations.items.list(id, { order: "asc", limit: 3 })) told.items.push(item.role);
told.metadata = (await client.conversations.retrieve(id)).metadata;
await client.conversations.delete(id);
told.gone = await client.conversations.retrieve(id).catch((error) => error.status);

told.refused = await client.chat.completions
  .create({ model, messages: [user("Hi")], temperature: 9 })
  .catch((error) => [error.constructor.name, error.param]);
console.log(JSON.stringify(told));
