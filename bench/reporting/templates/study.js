"use strict";
(() => {
  const study = JSON.parse(document.getElementById("study").textContent);
  const steps = study.questions.length * study.aspects.length;
  const place = "bps-bench-study-" + study.study;
  const at = (id) => document.getElementById(id);
  const haste = 250; // milliseconds in which nobody judges: the second half of a double click
  const sides = { left: "Left picture", right: "Right picture", same: "No difference" };
  let state = null;
  let shown = 0; // when the question came up, in milliseconds

  function random(below) {
    const draw = new Uint32Array(1);
    const most = Math.floor(2 ** 32 / below) * below;
    do crypto.getRandomValues(draw); while (draw[0] >= most);
    return draw[0] % below;
  }

  // A person's own order of questions, and all of them mirrored or none: each person then sees every
  // method as often on the left as on the right, and over persons every question both ways round.
  function begin() {
    const order = study.questions.map((_, i) => i);
    for (let i = order.length - 1; i > 0; i--) {
      const j = random(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    const bytes = crypto.getRandomValues(new Uint8Array(8));
    const rater = Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
    return { rater, order, mirrored: random(2) === 1, started: null, finished: null, step: 0,
             view: "intro", answers: [] };
  }

  function whole(found) {
    const each = Array.isArray(found.order) ? [...found.order].sort((a, b) => a - b) : [];
    return each.length === study.questions.length && each.every((v, i) => v === i) &&
      Array.isArray(found.answers) && found.answers.length <= steps &&
      found.answers.every((a) => a && a.answer in sides && Number.isFinite(a.seconds)) &&
      /^[0-9a-f]{16}$/.test(found.rater) && typeof found.mirrored === "boolean" &&
      Number.isInteger(found.step) && found.step >= 0 && found.step <= found.answers.length &&
      found.step < steps && ["intro", "ask", "end"].includes(found.view);
  }

  function load() {
    try {
      const found = JSON.parse(localStorage.getItem(place));
      if (found && whole(found)) return found;
    } catch { /* no storage, or not ours: start afresh */ }
    return begin();
  }

  function save() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch {
      at("intro-forgets").hidden = false;
    }
  }

  // What stands where at a step: the question, the aspect, and the codes of both sides.
  function asked(step) {
    const question = study.questions[state.order[Math.floor(step / study.aspects.length)]];
    const [one, two] = question.sides;
    return { question, aspect: study.aspects[step % study.aspects.length],
             left: state.mirrored ? two : one, right: state.mirrored ? one : two };
  }

  function answers() {
    return JSON.stringify({
      format: "bps-bench study answers", version: 1, study: study.study, rater: state.rater,
      started: state.started, finished: state.finished,
      answers: state.answers.map((given, step) => {
        const { question, aspect, left, right } = asked(step);
        return { question: question.code, left, right, asked: aspect.name, answer: given.answer,
                 seconds: given.seconds };
      }),
    }, null, 1) + "\n";
  }

  function words(parts) {
    const [before, strong, after] = parts;
    const mark = document.createElement("strong");
    mark.textContent = strong;
    return [before, mark, after];
  }

  function view(name) {
    state.view = name;
    for (const id of ["intro", "ask", "end"]) at(id).hidden = id !== name;
    at("live").textContent = "";
    ({ intro: showIntro, ask: showQuestion, end: showEnd })[name]();
    save();
  }

  function showIntro() {
    at("intro-count").textContent = steps;
    at("intro-minutes").textContent = Math.max(1, Math.ceil(steps * 5 / 60));
    at("intro-aspects").replaceChildren(...study.aspects.map((aspect) => {
      const box = document.createElement("div");
      const [question, hint] = [document.createElement("p"), document.createElement("p")];
      box.className = "aspect";
      question.append(...words(aspect.question));
      hint.className = "quiet";
      hint.textContent = aspect.hint;
      box.append(question, hint);
      return box;
    }));
  }

  function showQuestion() {
    const { question, aspect, left, right } = asked(state.step);
    const before = state.answers[state.step];
    at("prompt").replaceChildren(...words(aspect.question));
    at("hint").textContent = aspect.hint;
    at("count").textContent = `${state.step + 1} of ${steps}`;
    at("progress").max = steps;
    at("progress").value = state.answers.length;
    at("condition-picture").src = study.pictures[question.condition];
    at("condition-picture").alt = `The ${study.condition}`;
    at("condition-name").textContent = "The " + study.condition + (question.caption ? ":" : "");
    at("caption").textContent = question.caption;
    at("caption").hidden = !question.caption;
    at("left-picture").src = study.pictures[left];
    at("right-picture").src = study.pictures[right];
    for (const id of Object.keys(sides)) at(id).setAttribute("aria-pressed", String(before?.answer === id));
    at("back").disabled = state.step === 0;
    at("live").textContent = `Question ${state.step + 1} of ${steps}. ${aspect.question.join("")} ${question.caption}`;
    shown = performance.now();
  }

  function showEnd() {
    const done = state.answers.length;
    at("end-title").textContent = done === steps ? "Thank you" : "Stopped early";
    at("end-text").textContent = done === steps
      ? `All ${steps} questions are answered. Download your answers and send the file to whoever asked you.`
      : `${done} of ${steps} questions are answered. You can go on, or download what you have.`;
    at("download").disabled = done === 0;
    at("answers").value = answers();
    at("again").textContent = done === steps ? "Back to the last question" : "Go on";
    at("saved").textContent = "";
    at("end-title").focus();
  }

  function answer(side) {
    if (performance.now() - shown < haste) return;
    const seconds = Math.round(Math.min(performance.now() - shown, 86400000) / 10) / 100;
    state.answers[state.step] = { answer: side, seconds };
    if (state.step + 1 < steps) {
      state.step += 1;
      view("ask");
    } else {
      state.finished = new Date().toISOString();
      view("end");
    }
  }

  function back() {
    if (state.step > 0) {
      state.step -= 1;
      view("ask");
    }
  }

  function download() {
    const url = URL.createObjectURL(new Blob([answers()], { type: "application/json" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = `answers-${study.study}-${state.rater}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
    at("saved").textContent = `Saved as ${link.download}.`;
  }

  function key(event) {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    if (state.view !== "ask") return;
    const meant = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right",
                    ArrowDown: "same", 0: "same", Backspace: "back" }[event.key];
    if (!meant) return;
    event.preventDefault();
    if (meant === "back") back(); else answer(meant);
  }

  function start() {
    state.started = new Date().toISOString();
    view("ask");
    at("prompt").focus();
  }

  function fresh() {
    if (!confirm("Forget these answers and start afresh? Download them first.")) return;
    state = begin();
    view("intro");
    at("intro-title").focus();
  }

  document.body.classList.toggle("crisp", study.crisp);
  for (const side of Object.keys(sides)) at(side).addEventListener("click", () => answer(side));
  at("start").addEventListener("click", start);
  at("back").addEventListener("click", back);
  at("stop").addEventListener("click", () => view("end"));
  at("again").addEventListener("click", () => view("ask"));
  at("fresh").addEventListener("click", fresh);
  at("download").addEventListener("click", download);
  document.addEventListener("keydown", key);
  state = load();
  view(state.view);
})();
