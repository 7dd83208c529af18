"use strict";
// The conversation explorer. What people and models wrote only ever becomes text nodes.

const PAGE = 30; // tasks shown at first, and with every "show more"
const id = (name) => document.getElementById(name);

/** An element; strings among the children become text. */
function el(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A fold whose content is made when it is first opened. */
function fold(className, summary, content) {
  const made = el("details", className, el("summary", "", ...summary));
  made.addEventListener("toggle", () => made.append(...content()), { once: true });
  return made;
}

const quiet = (text) => el("small", "", text);
const number = (value) => (value === null ? "none" : value.toFixed(3).replace("-", "\u2212"));
const signed = (value) => (value > 0 ? "+" : "") + number(value);
const label = (metric) => metric.replace("tokens_read_k", "tokens read (k)").replaceAll("_", " ");

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** What the page shows of `data` (see explorer.py), and how it is filtered. */
class Explorer {
  constructor(data) {
    this.data = data;
    this.parts = {
      heldout: {
        name: "held-out tasks",
        gap: "trained \u2212 base",
        only: {
          "trained better": (task) => task.gap > 0,
          "trained worse": (task) => task.gap < 0,
        },
        body: (task) => this.heldout(task),
      },
      training: {
        name: "training tasks",
        gap: "gap",
        only: {
          "a pair was kept": (task) => task.kept > 0,
          "a turn without a pair": (task) => task.kept < task.turns.length,
        },
        body: (task) => this.training(task),
      },
    };
    const shared = { "a failure": (task) => task.failed > 0, "cut to fit": (task) => task.cut };
    for (const part of Object.values(this.parts)) part.only = { all: () => true, ...part.only, ...shared };
    this.searched = new Map();
  }

  text(index) {
    return this.data.texts[index];
  }

  start() {
    for (const [key, part] of Object.entries(this.parts)) {
      if (this.data[key].length) id("part").append(new Option(part.name, key));
    }
    id("part").addEventListener("change", () => this.choose());
    id("filters").addEventListener("input", () => this.filter());
    id("filters").addEventListener("submit", (event) => event.preventDefault());
    id("more").addEventListener("click", () => this.showMore());
    id("filters").hidden = false;
    this.choose();
  }

  /** Another part of the data. */
  choose() {
    if (!id("part").value) return;
    id("only").replaceChildren(...Object.keys(this.part.only).map((name) => new Option(name)));
    this.filter();
  }

  get part() {
    return this.parts[id("part").value];
  }

  filter() {
    const wanted = id("search").value.toLowerCase();
    const least = id("gap").valueAsNumber || 0;
    const only = this.part.only[id("only").value] ?? this.part.only.all;
    const all = this.data[id("part").value];
    this.found = all.filter(
      (task) =>
        (!least || Math.abs(task.gap ?? 0) >= least) && only(task) && (!wanted || this.words(task).includes(wanted)),
    );
    if (id("order").value === "gap") this.found.sort((a, b) => (b.gap ?? -Infinity) - (a.gap ?? -Infinity));
    this.shown = 0;
    id("tasks").replaceChildren();
    id("count").textContent = `${this.found.length} of ${all.length} tasks`;
    this.showMore();
  }

  showMore() {
    const next = this.found.slice(this.shown, (this.shown += PAGE));
    id("tasks").append(...next.map((task) => this.task(task)));
    id("more").hidden = this.shown >= this.found.length;
  }

  /** Everything that a search in a task looks at, in lower case. */
  words(task) {
    if (!this.searched.has(task)) {
      const texts = new Set(task.details);
      const add = (messages) => messages.forEach(([, text]) => texts.add(text));
      for (const turn of task.turns ?? []) {
        add(turn.context);
        for (const candidate of turn.candidates) {
          texts.add(candidate.text);
          candidate.futures.forEach((future) => add(future.messages));
        }
      }
      for (const sample of task.samples ?? []) {
        Object.values(sample).forEach((talk) => add(talk.messages ?? []));
      }
      const words = [task.id, ...[...texts].map((index) => this.text(index))];
      this.searched.set(task, words.join("\n").toLowerCase());
    }
    return this.searched.get(task);
  }

  task(task) {
    const gap = task.samples ? signed : number;
    const notes = [task.gap === null ? "no gap" : `${this.part.gap} ${gap(task.gap)}`];
    if (task.turns) notes.push(`${task.turns.length} turns, ${task.kept} kept`);
    if (task.failed) notes.push(`${task.failed} failed`);
    const summary = [task.id, ...notes.map((note) => el("span", "quiet", note))];
    return fold("task", summary, () => [this.goal(task), ...this.part.body(task)].filter(Boolean));
  }

  goal(task) {
    if (!task.details.length) return null;
    const items = task.details.map((detail) => el("li", "", this.text(detail)));
    const head = quiet("What the simulated user wants, and the assistant is not told:");
    return el("div", "", head, el("ul", "goal", ...items));
  }

  // Held-out tasks: the same sample in every arm, side by side.

  heldout(task) {
    return task.samples.map((sample, index) => {
      const arms = this.data.arms.filter((arm) => arm in sample).map((arm) => this.arm(arm, sample[arm], task));
      return el("div", "", el("h3", "", `sample ${index + 1}`), el("div", "columns three", ...arms));
    });
  }

  arm(name, talk, task) {
    if ("failure" in talk) {
      return el("section", name, el("b", "", name), el("p", "", `Failed: ${this.text(talk.failure)}`));
    }
    const head = el("b", "", `${name}, MR ${number(talk.reward)}`);
    return el("section", name, head, ...this.messages(talk.messages), this.measured(talk, task));
  }

  // Training tasks: turns, candidates, futures.

  training(task) {
    let seen = 0;
    return task.turns.map((turn, index) => {
      const news = this.messages(turn.context.slice(seen));
      seen = turn.context.length;
      const gap = turn.gap === null ? "" : `, gap ${number(turn.gap)}`;
      const outcome = turn.outcome === "kept" ? "pair kept" : `no pair, ${turn.outcome}`;
      const head = el("h3", "", `turn ${index + 1}${gap}: ${outcome}`);
      const candidates = turn.candidates.map((candidate, place) => this.candidate(candidate, place, task));
      return el("div", "turn", head, ...news, this.sides(turn), el("div", "branch", ...candidates));
    });
  }

  /** Chosen and rejected next to each other. */
  sides(turn) {
    const sides = ["chosen", "rejected"].map((side) => turn.candidates.find((candidate) => candidate.side === side));
    if (!sides.every(Boolean)) return null;
    const sections = sides.map((candidate) =>
      el("section", candidate.side, el("b", "", `${candidate.side}, ${this.mr(candidate)}`), this.message("assistant", candidate.text)),
    );
    return el("div", "columns two", ...sections);
  }

  mr(candidate) {
    if (candidate.mr === null) return "no MR";
    return `MR ${number(candidate.mr)}` + (candidate.se === null ? "" : ` \u00b1 ${number(candidate.se)}`);
  }

  candidate(candidate, place, task) {
    const notes = [candidate.style, this.mr(candidate), candidate.side].filter(Boolean);
    if (candidate.failures.length) notes.push(`${candidate.failures.length} failed`);
    return fold(`branch candidate ${candidate.side}`, [`candidate ${place + 1}: `, quiet(notes.join(", "))], () => [
      this.message("assistant", candidate.text),
      candidate.stop === "length" ? quiet("ended by the token limit") : null,
      ...candidate.futures.map((future, index) => this.future(future, index, task)),
      ...candidate.failures.map((failure) => el("p", "quiet", `A future failed: ${this.text(failure)}`)),
    ].filter(Boolean));
  }

  future(future, index, task) {
    const end = future.stop === "user_done" ? ", the user was done" : "";
    const summary = [`future ${index + 1}: `, quiet(`reward ${number(future.reward)}${end}`)];
    return fold("branch future", summary, () => [...this.messages(future.messages), this.measured(future, task)]);
  }

  // What a scored conversation is made of.

  messages(messages) {
    return messages.map(([role, text]) => this.message(role, text));
  }

  message(role, text) {
    return el("div", `message ${role}`, el("b", "", role), el("p", "", this.text(text)));
  }

  measured(talk, task) {
    const metrics = Object.entries(talk.metrics).map(([name, value]) => `${label(name)} ${+value.toFixed(3)}`);
    const extracted = Object.entries(talk.extracted).map(([name, text]) =>
      fold("quiet", [`${label(name)} was measured on`], () => [el("p", "extracted", this.text(text) || "nothing")]),
    );
    const cut = Object.entries(talk.cut).map(([role, count]) => `${role} ${count}`);
    const note = cut.length ? el("p", "quiet", `Messages not shown, for want of room: ${cut.join(", ")}`) : null;
    return el("div", "", this.judged(talk.judgements, task), el("p", "quiet", metrics.join(", ")), note, ...extracted);
  }

  /** Every question with its P(yes). */
  judged(judgements, task) {
    const rows = Object.entries(judgements).flatMap(([name, answers]) =>
      answers.flatMap((answer, index) => {
        const detail = name === "goal_coverage" && index in task.details ? this.text(task.details[index]) : null;
        const question = detail ? `Said: ${detail}` : this.data.questions[name] ?? `${label(name)} ${index + 1}`;
        const which = !detail && name in this.data.questions && answers.length > 1 ? ` (reply ${index + 1})` : "";
        const drawn = answer >= 0 && answer <= 1 ? bar(answer) : el("span"); // a log-likelihood is no share
        return [el("span", "", question + which), drawn, el("span", "", answer.toFixed(2))];
      }),
    );
    return el("div", "judged", ...rows);
  }
}

/** A share of a whole as a bar. */
function bar(share) {
  const space = "http://www.w3.org/2000/svg";
  const drawn = document.createElementNS(space, "svg");
  drawn.setAttribute("class", "bar");
  drawn.setAttribute("aria-hidden", "true");
  for (const width of [1, share]) {
    const part = document.createElementNS(space, "rect");
    part.setAttribute("width", `${100 * width}%`);
    part.setAttribute("height", "100%");
    drawn.append(part);
  }
  return drawn;
}

id("theme").hidden = false;
id("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

unpack(id("data").textContent).then(
  (data) => new Explorer(data).start(),
  (error) => (id("count").textContent = `The conversations cannot be shown in this browser: ${error.message}`),
);
