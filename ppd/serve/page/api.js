// What is asked of the server, and what it answers.

export async function modelInfo(key) {
  const answer = await fetch("/v1/models", { headers: headers(key) });
  if (!answer.ok) throw new Error(await reasonOf(answer));
  return (await answer.json()).data[0];
}

// Calls `hear` with every chunk of a stream. `signal` stops it.
export async function stream(path, body, key, signal, hear) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!answer.ok) throw new Error(await reasonOf(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      hear(chunk);
    }
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function reasonOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answers with ${answer.status}`;
  }
}
