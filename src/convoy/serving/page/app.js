// What the page shows. An engine answers: the service's (service.js), or the model in the browser (demo.js).

import { listen } from "./inputs.js";

const MOST_BARS = 10;
const find = (id) => document.getElementById(id);
export const percent = (value) => `${(100 * value).toFixed(1)} %`;

/** An expected failure, with a reason for the user. */
export class Refused extends Error {}

/**
 * Start the page.
 *
 * engine.privacy: where images go, in words.
 * engine.describe(): resolves to the line about the model.
 * engine.answer(blob): resolves to {classes: [[name, probability], …] best first, uncertain, details, pixels: ImageData or null}.
 * engine.golden() and engine.replay(progress), where images can be checked: whether there are golden images; the result in words.
 * engine.explain: {title, text, button, run(answer, blob, into)}; without a button it runs with every answer.
 */
export function start(engine) {
  let newest = 0; // an answer that was overtaken is not shown
  let address = null;
  let last = null;

  const take = async (blob, name) => {
    const mine = ++newest;
    last = { blob, name };
    say("problem", "");
    say("status", "Working …");
    try {
      const answer = await engine.answer(blob);
      if (mine !== newest) return;
      if (address) URL.revokeObjectURL(address);
      address = URL.createObjectURL(blob);
      find("given").src = address;
      draw(answer);
      say("status", "");
      await explain(engine, answer, blob, () => mine === newest);
    } catch (error) {
      if (mine === newest) fail(error);
    }
  };
  engine.again = () => last && take(last.blob, last.name);

  find("given").addEventListener("error", () => (find("given").alt = "The browser cannot show this format"));
  find("privacy").textContent = engine.privacy;
  describe(engine);
  if (engine.replay) offerReplay(engine);
  listen(take, (reason) => fail(new Refused(reason)));
}

/** Show what the engine knows of its model. */
export async function describe(engine) {
  try {
    say("model", await engine.describe());
  } catch (error) {
    fail(error);
  }
}

/** Make an element with text and attributes. */
export function make(kind, text = "", attributes = {}) {
  const element = document.createElement(kind);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function draw({ classes, uncertain, details, pixels }) {
  const [name, probability] = classes[0];
  const [strong, span, mark] = find("class").children;
  strong.textContent = name;
  span.textContent = percent(probability);
  mark.hidden = !uncertain;
  find("bars").replaceChildren(
    ...classes.slice(0, MOST_BARS).map(([label, value]) => {
      const row = document.createElement("li");
      const meter = make("meter", "", { min: 0, max: 1, value, "aria-label": label });
      row.append(make("span", label, { title: label }), meter, make("span", percent(value)));
      return row;
    }),
  );
  find("details").textContent = details;
  find("answer").hidden = false;
  paint(pixels);
}

/** Show the square that the network sees. */
export function paint(pixels) {
  find("seen-figure").hidden = !pixels;
  if (!pixels) return;
  const canvas = find("seen");
  [canvas.width, canvas.height] = [pixels.width, pixels.height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  find("seen-text").textContent = `As the network sees it: ${pixels.width} × ${pixels.height} pixels`;
}

async function explain({ explain: way }, answer, blob, current) {
  const [section, button, into] = [find("explain"), find("explain-button"), find("explanation")];
  section.hidden = !way;
  if (!way) return;
  find("explain-heading").textContent = way.title;
  find("explain-text").textContent = way.text;
  into.replaceChildren();
  const run = async () => {
    button.disabled = true;
    try {
      const shown = document.createElement("div");
      await way.run(answer, blob, shown);
      if (current()) into.replaceChildren(shown);
    } catch (error) {
      if (current()) fail(error);
    } finally {
      button.disabled = false;
    }
  };
  button.hidden = !way.button;
  button.textContent = way.button ?? "";
  button.onclick = run;
  button.disabled = false;
  if (!way.button) await run();
}

async function offerReplay(engine) {
  find("golden").hidden = !(await engine.golden());
  find("replay").onclick = async () => {
    find("replay").disabled = true;
    try {
      say("replayed", await engine.replay((done, all) => say("replayed", `${done} of ${all} …`)));
    } catch (error) {
      fail(error);
    } finally {
      find("replay").disabled = false;
    }
  };
}

function say(id, text) {
  if (find(id).textContent !== text) find(id).textContent = text;
}

function fail(error) {
  say("status", "");
  say("problem", error instanceof Refused ? error.message : `The page failed: ${error.message ?? error}`);
}
