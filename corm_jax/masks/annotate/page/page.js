"use strict";

// Keys beside the native ones of forms. Letters, not places: they are printed on the page.
const ANSWERS = ["main_object", "separate_object", "background"];
const CONFIDENCES = ["q", "w", "e", "r", "t"];
const KINDS = {
  images: ["Image", "as the network sees it"],
  maps: ["Heat map", "where the feature is active"],
  attacks: ["Attack", "changed to activate it more"],
};
const SHOWN = 5;
const KEPT = 4; // pairs whose pictures stay in memory
const RETRY = 1000; // milliseconds

const $ = (id) => document.getElementById(id);
const form = $("form");
const pictures = new Map(); // "number/kind" -> promise of data URLs
const visited = []; // numbers, for "back"
let shown = null; // number of the pair on the page
let busy = false;

history.replaceState(null, "", "/"); // the token need not stay in the address

class Failure extends Error {}

async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Failure("The server does not answer. Is the command still running?");
  }
  if (response.ok) return response.json();
  const text = response.headers.get("Content-Type")?.startsWith("text/plain");
  const error = new Failure(text ? (await response.text()).trim() : "The server failed; see its terminal.");
  error.status = response.status;
  throw error;
}

// --- Pictures.

function loadPictures(number, kind) {
  const key = `${number}/${kind}`;
  if (!pictures.has(key)) {
    const promise = ask(`/pairs/${key}`).then((content) =>
      content.pictures.map((data) => `data:image/png;base64,${data}`));
    promise.catch(() => pictures.delete(key));
    pictures.set(key, promise);
    while (pictures.size > KEPT * Object.keys(KINDS).length) {
      pictures.delete(pictures.keys().next().value);
    }
  }
  return pictures.get(key);
}

async function showPictures(number, kind) {
  const frames = [...document.querySelectorAll(`[data-kind=${kind}]`)];
  let urls;
  try {
    urls = await loadPictures(number, kind);
  } catch (error) {
    if (shown !== number) return;
    if (error.status === 503) {
      setTimeout(() => shown === number && showPictures(number, kind), RETRY);
      return;
    }
    frames.forEach((frame) => frame.classList.add("failed"));
    problem(error);
    return;
  }
  if (shown !== number) return;
  $("note").hidden = urls.length > 0;
  frames.forEach((frame, index) => {
    frame.hidden = index >= urls.length;
    if (frame.hidden) return;
    const image = frame.querySelector("img");
    image.src = urls[index];
    image.alt = `${KINDS[kind][0]} of top image ${index + 1}`;
    image.hidden = false;
    frame.classList.add("made");
  });
}

function layOut() {
  const cells = Object.entries(KINDS).map(([kind, [title, text]]) => {
    const heading = document.createElement("h2");
    const small = document.createElement("small");
    small.textContent = text;
    heading.append(title, small);
    return { heading, kind };
  });
  const grid = $("grid");
  grid.replaceChildren(...cells.map((cell) => cell.heading));
  for (let index = 0; index < SHOWN; index++) {
    for (const { kind } of cells) {
      const figure = $("row").content.firstElementChild.cloneNode(true);
      figure.firstElementChild.dataset.kind = kind;
      grid.append(figure);
    }
  }
}

// --- Pages.

function problem(error) {
  if (error && !(error instanceof Failure)) throw error;
  $("problem").textContent = error ? error.message : "";
}

function showProgress(state) {
  $("progress-text").textContent = `${state.answered} of ${state.count} pairs`;
  $("progress").max = state.count;
  $("progress").value = state.answered;
}

async function showPair(number) {
  const pair = await ask(`/pairs/${number}`);
  shown = number;
  const name = pair.description || pair.class_name;
  document.title = `${name}, feature ${pair.feature}`;
  $("class-name").textContent = name;
  const label = pair.description ? `${pair.class_name} · ` : "";
  $("feature").textContent = `${label}feature ${pair.feature} · rank ${pair.rank} of ${pair.ranks}`;
  document.querySelectorAll(".object").forEach((span) => (span.textContent = name.split(",")[0]));
  form.reset();
  if (pair.answer) {
    form.elements.main.value = pair.answer.main;
    form.elements.confidence.value = pair.answer.confidence;
    form.elements.reasons.value = pair.answer.reasons;
  }
  problem(null);
  $("back").disabled = !visited.length && number === 0;
  $("finished").hidden = true;
  $("pair").hidden = false;
  $("class-name").focus(); // leaves the text field, so that keys answer again
  window.scrollTo(0, 0);
  layOut();
  const loading = Object.keys(KINDS).map((kind) => showPictures(number, kind));
  await Promise.all(loading);
  if (shown === number && pair.following !== null) {
    Object.keys(KINDS).forEach((kind) => loadPictures(pair.following, kind).catch(() => {}));
  }
}

function showFinished(state) {
  shown = null;
  document.title = "All pairs are answered";
  $("class-name").textContent = "Done";
  $("feature").textContent = "";
  $("worker").textContent = state.worker;
  $("csv").textContent = state.finished.csv;
  $("flags").textContent = state.finished.flags.replaceAll(" --", " \\\n--"); // a line each
  $("review").onclick = () => go(() => showPair(visited.pop() ?? state.count - 1));
  $("pair").hidden = true;
  $("finished").hidden = false;
}

function follow(state) {
  showProgress(state);
  if (state.next === null) showFinished(state);
  else go(() => showPair(state.next));
}

function go(action) {
  action().catch(problem);
}

// --- What the user does.

async function save() {
  if (busy || shown === null) return;
  const content = {
    main: form.elements.main.value,
    confidence: Number(form.elements.confidence.value),
    reasons: form.elements.reasons.value,
  };
  if (!content.main) return problem(new Failure("Say where it lies: 1, 2 or 3."));
  if (!content.confidence) return problem(new Failure("Say how sure you are: Q to T."));
  busy = true;
  $("save").disabled = true;
  try {
    const state = await ask(`/pairs/${shown}/answer`, content);
    visited.push(shown);
    follow(state);
  } catch (error) {
    problem(error);
  } finally {
    busy = false;
    $("save").disabled = false;
  }
}

function back() {
  if (shown === null || $("back").disabled) return;
  const number = visited.pop() ?? shown - 1;
  go(() => showPair(number));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
form.addEventListener("change", () => problem(null));
$("back").addEventListener("click", back);

document.addEventListener("keydown", (event) => {
  if (shown === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.name === "reasons";
  if (event.key === "Escape" && typing) return event.target.blur();
  const button = event.target.tagName === "BUTTON";
  if (event.key === "Enter" && !typing && !button) {
    event.preventDefault();
    return save();
  }
  if (typing) return;
  const key = event.key.toLowerCase();
  const digit = /^(?:Digit|Numpad)([123])$/.exec(event.code); // also where digits need a shift
  if (digit) form.elements.main.value = ANSWERS[digit[1] - 1];
  else if (CONFIDENCES.includes(key)) form.elements.confidence.value = CONFIDENCES.indexOf(key) + 1;
  else if (key === "b") back();
  else if (key === "n") form.elements.reasons.focus();
  else return;
  event.preventDefault();
  problem(null);
});

go(async () => follow(await ask("/state")));
