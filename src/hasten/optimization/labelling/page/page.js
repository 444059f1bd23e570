"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const items = data.items, names = data.names, served = location.protocol.startsWith("http");
const known = new Set(items.map((item) => item.id));
const buttons = data.classes > 0 && data.classes <= 10;
const numbered = !names.some((name) => name.trim() !== "" && Number.isFinite(Number(name)));
let labels = {}, place = 0, unsaved = false;

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(data.key) || "{}");
    return found && typeof found === "object" ? found : {};
  } catch { return {}; }
}

function take(found) {
  for (const [id, label] of Object.entries(found)) {
    if (known.has(id) && typeof label === "string" && label !== "") labels[id] = label;
  }
}

function nameOf(number) { return names.length ? names[number] : String(number); }

function meant(text) {
  const given = text.trim();
  if (given === "?" || names.includes(given)) return given;
  if (given === "" || !Number.isFinite(Number(given))) return null;
  if (!data.classes) return given;
  const number = Number(given);
  if (!numbered) return null;
  return Number.isInteger(number) && number >= 0 && number < data.classes ? nameOf(number) : null;
}

function told() {
  if (!data.classes) return "Type a number, then Enter.";
  if (names.length && !numbered) return "Type a class, then Enter.";
  return names.length ? "Type a class or its number, then Enter." : `Type 0 to ${data.classes - 1}, then Enter.`;
}

async function set(label) {
  const id = items[place].id;
  if (label === "") delete labels[id]; else labels[id] = label;
  unsaved = true;
  try { localStorage.setItem(data.key, JSON.stringify(labels)); } catch { /* the page still holds them */ }
  if (served) await send({ [id]: label });
}

async function send(some) {
  try {
    const answer = await fetch("labels", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(some),
    });
    if (!answer.ok) throw new Error(await answer.text());
    unsaved = false;
    at("where").textContent = "Saved in labels.csv as you label.";
  } catch (error) {
    at("where").textContent = `Not saved by the server: download labels.csv. (${error.message})`;
  }
}

function picture(item) {
  const image = document.createElement("img");
  image.alt = `sample ${place + 1}`;
  image.onload = () => image.classList.toggle("large", image.naturalWidth > 96);
  image.src = item.picture;
  return image;
}

function table(item) {
  const shown = document.createElement("table");
  for (const [name, value] of item.table) {
    const row = shown.insertRow(), head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    row.append(head);
    row.insertCell().textContent = value;
  }
  return shown;
}

function text(item) {
  const shown = document.createElement("p");
  shown.className = "text";
  shown.textContent = item.text;
  return shown;
}

function show() {
  const item = items[place], label = labels[item.id] ?? "";
  const done = items.filter((each) => each.id in labels).length;
  at("progress").textContent = `Sample ${place + 1} of ${items.length}; ${done} labelled`
    + (done === items.length ? ": all done" : "");
  at("bar").max = items.length;
  at("bar").value = done;
  at("sample").replaceChildren(item.picture ? picture(item) : item.text ? text(item) : table(item));
  at("typed").value = label;
  at("wrong").textContent = "";
  for (const button of at("classes").children) {
    button.setAttribute("aria-pressed", String(button.value === label));
  }
  at("unsure").setAttribute("aria-pressed", String(label === "?"));
  if (!buttons) { at("typed").focus(); at("typed").select(); }
}

function go(step) {
  place = Math.min(Math.max(place + step, 0), items.length - 1);
  show();
}

function onward() {
  for (let step = 1; step <= items.length; step++) {
    const next = (place + step) % items.length;
    if (!(items[next].id in labels)) { place = next; break; }
  }
  show();
}

function label(given) {
  const found = meant(given);
  if (found === null) {
    at("wrong").textContent = `"${given}" isn't a label. ${told()}`;
    return;
  }
  set(found);
  onward();
}

function cell(value) { return /[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value; }

function save() {
  const lines = items.map((item) => `${item.id},${cell(labels[item.id] ?? "")}\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["id,label\n", ...lines], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  if (!served) unsaved = false;
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); label(at("typed").value); });
at("back").addEventListener("click", () => go(-1));
at("next").addEventListener("click", () => go(1));
at("unsure").addEventListener("click", () => label("?"));
at("clear").addEventListener("click", () => { set(""); show(); });
at("save").addEventListener("click", save);
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
document.addEventListener("keydown", (event) => {
  const typing = document.activeElement === at("typed");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s") { event.preventDefault(); save(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const move = { ArrowLeft: () => go(-1), ArrowRight: () => go(1), "?": () => label("?"),
    Delete: () => { set(""); show(); } }[event.key];
  if (move && (!typing || event.key === "?" || at("typed").value === "" || at("typed").value === labels[items[place].id])) {
    event.preventDefault();
    move();
    return;
  }
  if (buttons && !typing && /^[0-9]$/.test(event.key) && meant(event.key) !== null) {
    event.preventDefault();
    label(event.key);
  }
});

if (buttons) {
  for (let number = 0; number < data.classes; number++) {
    const button = document.createElement("button");
    button.type = "button";
    button.value = nameOf(number);
    button.textContent = names.length && numbered ? `${number}: ${names[number]}` : nameOf(number);
    button.addEventListener("click", () => { set(button.value); onward(); });
    at("classes").append(button);
  }
}
for (const name of names) {
  const option = document.createElement("option");
  option.value = name;
  at("names").append(option);
}
at("ask").textContent = told();
at("where").textContent = served ? "Saved in labels.csv as you label."
  : "Put labels.csv beside this page, or name it: --ask-labels=labels.csv --resume.";
take(data.labels);
take(kept());
if (served) {
  fetch("labels").then((answer) => answer.json()).then((found) => {
    const local = { ...labels };
    take(found);
    const fresh = Object.fromEntries(Object.entries(local).filter(([id]) => !(id in found)));
    if (Object.keys(fresh).length) send(fresh);
    show();
  }).catch(() => { at("where").textContent = "The server doesn't answer: download labels.csv."; });
}
show();
