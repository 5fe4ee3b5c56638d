// Asks a gateway everything that OpenAI's client for Node can, and prints what came.
// What to ask comes as JSON on the standard input (test_clients.py).
import OpenAI, { APIConnectionTimeoutError, APIError } from "openai";

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const { baseURL, apiKey, weather, schema, texts } = JSON.parse(Buffer.concat(chunks));
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 20_000 });
const user = (content) => [{ role: "user", content }];
const ask = (more, options) =>
  client.chat.completions.create({ model: "plain", messages: user("Why?"), ...more }, options);
const found = {};

const { data, response, request_id } = await ask({}).withResponse();
found.chat = {
  content: data.choices[0].message.content,
  tokens: data.usage.completion_tokens,
  requestId: request_id.startsWith("req_simulated"),
  revision: response.headers.get("x-serinus-revision").length > 0,
};

async function read(stream) {
  let [content, finish, withoutChoices, usage] = ["", null, 0, null];
  for await (const piece of stream) {
    withoutChoices += piece.choices.length === 0;
    usage = piece.usage ?? usage;
    content += piece.choices[0]?.delta.content ?? "";
    finish = piece.choices[0]?.finish_reason ?? finish;
  }
  return { content, finish, withoutChoices, usage };
}
const { usage: hidden, ...streamed } = await read(await ask({ stream: true }));
if (hidden) throw new Error("usage was not asked for");
found.stream = streamed;
const told = await read(await ask({ stream: true, stream_options: { include_usage: true } }));
found.usage = { tokens: told.usage.completion_tokens, withoutChoices: told.withoutChoices };
found.choices = (await ask({ n: 2, logprobs: true, top_logprobs: 2 })).choices.length;

const tools = [{ type: "function", function: weather }];
const called = await ask({ messages: user(texts.tools), tools });
const calling = client.chat.completions.stream({ model: "plain", messages: user(texts.tools), tools });
found.tools = {
  json: called.choices[0].message.tool_calls[0].function.name,
  stream: (await calling.finalChatCompletion()).choices[0].message.tool_calls[0].function.name,
};
const response_format = { type: "json_schema", json_schema: { name: "plan", strict: true, schema } };
found.structured = (await ask({ response_format })).choices[0].message.content;
// A field that OpenAI does not know goes beside the others.
const serinus = { variables: { question: "Why?" } };
found.variables = (await ask({ model: "asks", messages: [], serinus })).choices[0].message.content;

const completion = await client.completions.create({ model: "plain", prompt: "Why?" });
let text = "";
for await (const piece of await client.completions.create({ model: "plain", prompt: "Why?", stream: true })) {
  text += piece.choices[0].text;
}
found.completions = { json: completion.choices[0].text, stream: text };

const vectors = async (more) =>
  (await client.embeddings.create({ model: "plain", input: ["a", "b"], dimensions: 4, ...more })).data.map(
    (one) => Array.from(one.embedding),
  );
const [coded, numbers] = [await vectors({}), await vectors({ encoding_format: "float" })];
found.embeddings = {
  numbers: numbers.map((vector) => vector.length),
  same: JSON.stringify(coded) === JSON.stringify(numbers),
};

const whole = await client.responses.create({ model: "plain", input: "Why?" });
let [said, next, inOrder] = ["", 0, true];
for await (const event of await client.responses.create({ model: "plain", input: "Why?", stream: true })) {
  inOrder &&= event.sequence_number === next++;
  if (event.type === "response.output_text.delta") said += event.delta;
}
found.responses = { text: whole.output_text, streamed: said, inOrder };

const names = [];
for await (const model of client.models.list()) names.push(model.id);
found.models = { list: names, one: (await client.models.retrieve("team/plain")).id };

async function failure(asking) {
  try {
    const answer = await asking;
    for await (const _ of answer);
  } catch (error) {
    if (!(error instanceof APIError)) throw error;
    return [error.constructor.name, error.status ?? null, error.code ?? null];
  }
  throw new Error("no failure");
}
found.errors = {
  invalid: await failure(ask({ model: "asks", messages: [] })),
  unauthorized: await failure(
    client.withOptions({ apiKey: "wrong" }).chat.completions.create({ model: "plain", messages: [] }),
  ),
  unknown: await failure(ask({ model: "nobody" })),
  limited: await failure(ask({ messages: user(texts.limited) })),
  slow: await failure(ask({ messages: user(texts.slow) }, { timeout: 300 })),
  broken: await failure(ask({ messages: user(texts.broken), stream: true })),
};
if (!(new APIConnectionTimeoutError() instanceof APIError)) throw new Error("timeouts are errors of the API");
found.retried = (await ask({ messages: user(texts.retries) }, { maxRetries: 2 })).choices[0].message.content;

found.cancelled = 0;
for await (const _ of await ask({ messages: user(texts.cancelled), stream: true })) {
  found.cancelled += 1;
  if (found.cancelled === 6) break;
}
console.log(JSON.stringify(found));
