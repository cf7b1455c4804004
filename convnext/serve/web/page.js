// The page: sends an image, draws the prediction over it. No framework, nothing from another host.

import { film } from "./camera.js";
import { canvas, colourOf, css, drawBoxes, drawMasks, percent, regions } from "./draw.js";

const $ = (id) => document.getElementById(id);
const ENLARGED = 320; // pixels that the longer side of a small image is shown in, at least
const FIRST_CLASSES = 5; // that are listed before one asks for all
const SPOKEN = 3; // lines of the answer that a screen reader reads at once
const COVERAGE = 0.95; // of the set of classes of a calibrated model
const TOKEN = "convnext-token";

let models = [];
let file = null; // the image on the page
let size = [0, 0]; // its width and height, in whose pixels boxes are given
let classes = FIRST_CLASSES; // how many are listed
let last = null; // the answer on the page
let underway = new AbortController();

async function call(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const bytes = String.fromCharCode(...new TextEncoder().encode(token ?? "")); // a header consists of bytes
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${bytes}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) $("lock").hidden = false;
  const { detail } = await response.json().catch(() => ({}));
  const message = typeof detail === "string" ? detail : `the service answered ${response.status}`;
  throw Object.assign(new Error(message), { status: response.status });
}

const query = (path, values) => `${path}?${new URLSearchParams(values)}`;
const send = (path, signal) => call(path, { method: "POST", body: file, signal, headers: { "Content-Type": file.type || "application/octet-stream" } });
const modelNow = () => models.find((model) => model.name === $("model").value);

function say(text, state = "") {
  $("status").textContent = text;
  document.body.classList.toggle("busy", state === "busy");
  document.body.classList.toggle("failed", state === "failed");
}

async function begin() {
  try {
    models = await (await call("v1/models")).json();
  } catch (error) {
    return say(`${error.message}.`, "failed");
  }
  $("lock").hidden = true;
  $("camera").hidden = !navigator.mediaDevices;
  $("model").replaceChildren(...models.map(({ name, task }) => new Option(`${name} (${task})`, name)));
  $("switch").hidden = models.length < 2;
  say("Images are sent to this service only, and are not stored.");
}

// --- the prediction --------------------------------------------------------------------------------------------------

async function show(chosen) {
  if (!chosen || !models.length) return;
  file = chosen;
  classes = FIRST_CLASSES;
  $("note").hidden = true;
  document.body.classList.add("filled");
  $("shown").hidden = false;
  await ask(display(file));
}

// Shows an image. One that this browser can't decode is painted by the service.
async function display(content) {
  const image = $("image");
  const put = (blob) => {
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(blob);
    return image.decode();
  };
  try {
    await put(content);
    size = [image.naturalWidth, image.naturalHeight];
  } catch {
    try {
      const response = await send(query("v1/preview", { model: modelNow().name }));
      await put(await response.blob());
      size = response.headers.get("X-Image-Size").split("x").map(Number);
    } catch {
      return; // the prediction says what is wrong with it
    }
  }
  const factor = Math.ceil(ENLARGED / Math.max(...size));
  image.classList.toggle("small", factor > 1);
  image.style.setProperty("--width", `${size[0] * factor}px`);
}

// What the service finds too large is sent again with half of the pixels, as often as needed.
async function sendFitting(path, signal) {
  for (;;) {
    try {
      return await send(path, signal);
    } catch (error) {
      if (error.status !== 413 || !/at most \d+ (bytes|pixels)/.test(error.message)) throw error;
      const bitmap = await createImageBitmap(file).catch(() => null);
      if (!bitmap || Math.min(bitmap.width, bitmap.height) < 64) throw error;
      const smaller = new OffscreenCanvas(Math.round(bitmap.width * Math.SQRT1_2), Math.round(bitmap.height * Math.SQRT1_2));
      smaller.getContext("2d").drawImage(bitmap, 0, 0, smaller.width, smaller.height);
      file = await smaller.convertToBlob({ type: "image/jpeg", quality: 0.95 });
      await display(file);
      $("note").textContent = `The image was reduced to ${smaller.width} × ${smaller.height} pixels before it was sent: the service takes no larger one.`;
      $("note").hidden = false;
    }
  }
}

async function ask(painted = null) {
  const started = performance.now();
  underway.abort(); // an answer that is no longer wanted must not be drawn over the next image
  underway = new AbortController();
  const { signal } = underway;
  clear();
  say("Looking …", "busy");
  const { name, options } = modelNow();
  const wanted = { threshold: shownScore(), coverage: COVERAGE, unknown: 1 }; // no masks of objects that are not shown
  const chosen = Object.fromEntries(Object.entries(wanted).filter(([option]) => options.includes(option)));
  try {
    const top = modelNow().task === "detect" || modelNow().task === "segment" ? {} : { top: classes };
    const [response] = await Promise.all([sendFitting(query("v1/predict", { model: name, ...top, ...chosen }), signal), painted]);
    const answer = await response.json();
    if (signal.aborted) return;
    say("");
    last = answer;
    $("score").hidden = answer.task !== "detect";
    showKnown(answer);
    await { classify: showClasses, multilabel: showClasses, regress: showValue, detect: showObjects, segment: showRegions }[answer.task](answer, signal);
    const seconds = (performance.now() - started) / 1000;
    const model = Number(/model;dur=([\d.]+)/.exec(response.headers.get("Server-Timing"))?.[1] ?? 0) / 1000;
    $("time").textContent = `Model ${milliseconds(model)}, in all ${milliseconds(seconds)}`;
    $("spoken").textContent = [...$("found").children].slice(0, SPOKEN).map(({ innerText }) => innerText.replace("\n", " ")).join(", ");
    document.body.dataset.model = 1000 * model;
    document.body.dataset.elapsed = 1000 * seconds;
  } catch (error) {
    if (!signal.aborted) say(`${error.message}.`, "failed");
  }
}

const milliseconds = (seconds) => `${Math.round(1000 * seconds)} ms`;
const shownScore = () => $("threshold").value / 100;

function clear() {
  $("found").replaceChildren();
  $("spoken").textContent = "";
  $("time").textContent = "";
  $("slider").hidden = $("known").hidden = $("all").hidden = true;
  for (const id of ["overlay", "boxes"]) $(id).width = $(id).height = 0;
  delete document.body.dataset.elapsed;
}

// One line of the answer: a bar as long as its share, a colour where it is drawn in one, a button where it does something.
function row(name, share, { colour = "", press = null } = {}) {
  const line = document.createElement(press ? "button" : "div");
  const label = Object.assign(document.createElement("span"), { textContent: name, title: name, dir: "auto" });
  const value = Object.assign(document.createElement("data"), { value: share, textContent: percent(share) });
  line.style.setProperty("--share", percent(share).replace("\u00a0", ""));
  if (colour) {
    const chip = document.createElement("i");
    chip.style.setProperty("--colour", colour);
    line.append(chip);
  }
  line.append(label, value);
  if (press) {
    Object.assign(line, { type: "button", onclick: () => press(line) }).setAttribute("aria-pressed", "false");
  }
  const item = document.createElement("li");
  item.append(line);
  return item;
}

function showSlider(name) {
  $("slides").textContent = name;
  $("slider").hidden = false;
  $("overlay").style.opacity = $("opacity").value / 100;
}

// What a calibrated model knows of its answer.
function showKnown({ set, novelty, unknown }) {
  const classes = set && `${Math.round(100 * COVERAGE)}\u00a0% set: ${set.length} ${set.length === 1 ? "class" : "classes"}`;
  const likeness = novelty !== undefined && `${unknown ? "Unlike the training images: novelty" : "Novelty"} ${novelty.toFixed(2)}`;
  $("known").textContent = [likeness, classes].filter(Boolean).map((words) => `${words}.`).join("\n");
  $("known").hidden = !(likeness || classes);
  $("known").classList.toggle("unknown", Boolean(unknown));
}

function showClasses({ top, set }, signal) {
  const press = modelNow().explains ? (name) => (line) => explain(name, line, signal) : () => null;
  const shown = set?.length > top.length ? set : top; // both are the most probable classes
  $("found").replaceChildren(...shown.map((one) => row(one.class, one.probability, { press: press(one.class) })));
  const rest = modelNow().classes.length - shown.length;
  $("all").hidden = rest <= 0;
  $("all").textContent = `Show all ${modelNow().classes.length} classes`;
  if (set) [...$("found").children].slice(set.length).forEach((item) => item.classList.add("out"));
  if (modelNow().explains) explain(top[0].class, $("found").querySelector("button"), signal);
}

function showValue({ value }) {
  $("found").replaceChildren(Object.assign(document.createElement("li"), { textContent: value.toPrecision(5) }));
}

function mark(line) {
  for (const other of $("found").querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === line));
}

async function explain(name, line, signal) {
  mark(line);
  try {
    const response = await send(query("v1/explain", { model: modelNow().name, class: name }), signal);
    const map = await createImageBitmap(await response.blob());
    if (signal.aborted || line.getAttribute("aria-pressed") !== "true") return;
    const pen = canvas("overlay", map.width, map.height);
    pen.drawImage(map, 0, 0);
    showSlider(`Evidence for ${name}`);
    document.body.dataset.explained = name;
  } catch (error) {
    if (!signal.aborted) say(`No activation map: ${error.message}.`, "failed");
  }
}

function showObjects({ objects }) {
  const sure = objects.filter(({ score }) => score >= shownScore());
  const names = modelNow().classes;
  const coloured = sure.map((one) => ({ ...one, rgb: colourOf(names.indexOf(one.class)) }));
  $("found").replaceChildren(...coloured.map((one) => row(one.class, one.score, { colour: css(one.rgb) })));
  say(sure.length ? "" : `Nothing with a score of ${percent(shownScore())} or more.`);
  if (drawMasks(coloured)) showSlider("Opacity of the masks");
  drawBoxes(coloured, size[0]);
}

// A class that is pressed is drawn alone, and pressed again with the others.
async function showRegions({ size: [height, width], classes, mask }) {
  const names = modelNow().classes;
  const content = new Blob([Uint8Array.from(atob(mask), (letter) => letter.charCodeAt(0))], { type: "image/png" });
  const draw = await regions(content, width, height, modelNow().class_ids ?? names.map((_, index) => index));
  const alone = (index) => (line) => {
    const chosen = line.getAttribute("aria-pressed") === "true" ? null : line;
    mark(chosen);
    draw(chosen && index);
  };
  const lines = classes.map(({ class: name, share }) => [name, share, names.indexOf(name)]);
  $("found").replaceChildren(...lines.map(([name, share, index]) => row(name, share, { colour: css(colourOf(index)), press: alone(index) })));
  draw();
  showSlider("Opacity of the classes");
}

// --- user input ------------------------------------------------------------------------------------------------------

const imageIn = (transfer) => [...(transfer?.files ?? [])].find(({ type }) => !type || type.startsWith("image/"));

$("file").addEventListener("change", ({ target }) => {
  show(target.files[0]);
});
addEventListener("paste", ({ clipboardData }) => show(imageIn(clipboardData)));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault(); // else the browser leaves the page for the image
  document.body.classList.remove("over");
  const found = imageIn(event.dataTransfer);
  if (found) show(found);
  else say("That is not an image file.", "failed");
});
$("model").addEventListener("change", () => file && ask());
$("all").addEventListener("click", async () => {
  classes = modelNow().classes.length;
  await ask();
  $("found").focus(); // the button that had it is gone
});
$("threshold").addEventListener("input", ({ target }) => {
  $("score").querySelector("output").textContent = `${target.value}\u00a0%`;
  if (last?.task === "detect") {
    for (const id of ["overlay", "boxes"]) $(id).width = $(id).height = 0;
    showObjects(last); // those that the last answer has; more of them are asked for when the slider rests
  }
});
$("threshold").addEventListener("change", () => file && ask());
$("opacity").addEventListener("input", ({ target }) => ($("overlay").style.opacity = target.value / 100));
$("camera").addEventListener("click", () => film(show, say));
$("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  begin();
});

begin();
