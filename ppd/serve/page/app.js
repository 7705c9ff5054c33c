// The page: a conversation, settings, and for every answer how it was made.

import { modelInfo, stream } from "./api.js";
import { element } from "./elements.js";
import { Made, SOURCES } from "./made.js";
import { markdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const settings = $("settings").querySelector("form");
const turns = []; // { question, answer, element }
let model = null;
let stopping = null; // of the answer under way

function setting(name) {
  return settings.elements[name].value;
}

async function begin() {
  try {
    model = await modelInfo(setting("key"));
  } catch (error) {
    $("hint").textContent = `${error.message}. Settings has a field for the API key.`;
    return;
  }
  $("model").textContent = `· ${model.id}`;
  document.title = `ppd · ${model.id}`;
  const { sources, can_draft_from: all, chat, engine, precision, context } = model.ppd;
  $("hint").textContent = `${precision}, ${context} tokens of context, ${engine}. ` +
    (sources.length ? `Drafts from ${sources.map((source) => SOURCES[source]).join(", ")}.` : "Decodes plainly.") +
    (chat ? "" : " This model has no chat template: it goes on with what you write.");
  const choices = [["auto", "auto"], ["off", "off"], ...all.map((source) => [source, SOURCES[source]])];
  if (all.includes("ppd") || all.includes("medusa")) choices.push(["always", "tree at every step"]);
  settings.elements.draft.replaceChildren(...choices.map(([value, words]) => element("option", { value }, words)));
}

function bodyFor(question, before, draft) {
  const body = { model: model.id, temperature: Number(setting("temperature")), ppd: { trace: true, ...draft } };
  for (const name of ["top_p", "top_k", "seed", "max_tokens"]) if (setting(name)) body[name] = Number(setting(name));
  if (!model.ppd.chat) return { max_tokens: 256, ...body, prompt: question };
  const system = setting("system").trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of before) messages.push({ role: "user", content: turn.question }, { role: "assistant", content: turn.answer });
  return { ...body, messages: [...messages, { role: "user", content: question }] };
}

function chosenDraft() {
  const chosen = setting("draft");
  return chosen === "auto" || !chosen ? {} : { draft: { off: false, always: true }[chosen] ?? chosen };
}

// One column of an answer: text, how it was made, and figures. Returns what was said.
async function fill(column, body) {
  const text = element("div", { class: "text" });
  const figures = element("p", { class: "figures" });
  const made = new Made();
  column.append(text, made.element, figures);
  let said = "", due = false, last = null;
  const draw = () => {
    due = false;
    text.replaceChildren(markdown(said));
    figures.textContent = wordsOf(made.figures, last);
  };
  const path = model.ppd.chat ? "/v1/chat/completions" : "/v1/completions";
  stopping = new AbortController();
  busy(true);
  try {
    await stream(path, body, setting("key"), stopping.signal, (chunk) => {
      const choice = chunk.choices[0];
      said += choice?.delta?.content ?? choice?.text ?? "";
      if (chunk.ppd?.step) made.add(chunk.ppd.step);
      else if (chunk.ppd) last = chunk.ppd;
      const atEnd = innerHeight + scrollY > document.body.scrollHeight - 120;
      if (!due) requestAnimationFrame(() => { draw(); if (atEnd) scrollTo(0, document.body.scrollHeight); });
      due = true;
    });
    tell("The answer is complete.");
  } catch (error) {
    const wasStopped = error.name === "AbortError";
    tell(wasStopped ? "Stopped." : error.message);
    column.append(element("p", { class: wasStopped ? "figures" : "error" }, wasStopped ? "Stopped." : error.message));
  } finally {
    draw();
    stopping = null;
    busy(false);
  }
  return { said, made, seed: last?.seed };
}

function wordsOf({ tokens, tau, speed }, last) {
  if (!tokens) return "";
  const told = [`${tokens} tokens`];
  if (Number.isFinite(speed)) told.push(`${speed.toFixed(1)} tokens/s`, `τ ${tau.toFixed(2)}`);
  if (last?.first_token_ms) told.push(`first token ${last.first_token_ms.toFixed(0)} ms`);
  if (last?.reused_tokens) told.push(`${last.reused_tokens} of ${last.prompt_tokens} prompt tokens reused`);
  return told.join(" · ");
}

async function answer(turn, before) {
  const columns = element("div", { class: "columns" });
  const column = element("div", { class: "column" });
  const tools = element("div", { class: "tools" });
  columns.append(column);
  turn.element.replaceChildren(columns, tools);
  turn.element.setAttribute("aria-busy", "true");
  const body = bodyFor(turn.question, before, chosenDraft());
  const { said, made, seed } = await fill(column, body);
  turn.answer = said;
  turn.element.removeAttribute("aria-busy");
  const again = element("button", { type: "button", click: () => free() && answer(turn, turns.slice(0, turns.indexOf(turn))) }, "Regenerate");
  const beside = element("button", {
    type: "button",
    click: async () => {
      if (!free()) return;
      beside.remove();
      column.prepend(element("h3", {}, "With drafting"));
      const other = element("div", { class: "column" }, element("h3", {}, "Without drafting"));
      columns.append(other);
      const plain = { ...body, ppd: { trace: true, draft: false, reuse: false }, ...(seed === undefined ? {} : { seed }) };
      const found = await fill(other, plain);
      const ids = made.ids;
      const isSame = found.made.ids.every((id, place) => place >= ids.length || id === ids[place]);
      other.append(element("p", { class: "figures" }, isSame ? "The same tokens." : "Other tokens: a near-tie fell differently."));
    },
  }, "Without drafting, beside it");
  tools.append(again, beside);
}

function ask(question) {
  const turn = { question, answer: "", element: element("div", { class: "answer" }) };
  $("log").append(element("div", { class: "question" }, question), turn.element);
  const before = turns.slice();
  turns.push(turn);
  scrollTo(0, document.body.scrollHeight);
  return answer(turn, before);
}

function free() {
  return model !== null && stopping === null;
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
}

function tell(words) {
  $("status").textContent = words;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value;
  if (!question.trim() || !free()) return;
  $("question").value = "";
  ask(question);
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => { stopping?.abort(); $("question").focus(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !$("settings").open) stopping?.abort(); });
$("new").addEventListener("click", () => {
  stopping?.abort();
  turns.length = 0;
  $("log").replaceChildren();
  $("question").focus();
});
$("how").addEventListener("change", () => document.body.classList.toggle("how", $("how").checked));
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("settings").addEventListener("close", () => {
  sessionStorage.setItem("key", setting("key"));
  if (model === null) begin();
});
$("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));

setTheme(localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
settings.elements.key.value = sessionStorage.getItem("key") ?? "";
begin();
