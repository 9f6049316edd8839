/* One run's page: a snapshot once, then what happens, over one socket. Text goes in with textContent only. */
(() => {
  "use strict";
  const { grouped, sizes, loss, plain, duration, make, Series, RunChart } = Graft.drawing; // chart.js

  class RunPage {
    constructor(element) {
      this.element = element;
      this.series = new Map();
      this.answers = new Map();
      this.charts = [];
      this.lastId = 0;
      this.skew = 0; // the server's clock less ours, in seconds
      this.find = (name) => element.querySelector(`[data-run="${name}"]`);
      this.id = new URLSearchParams(location.search).get("id") || "";
    }

    async open() {
      if (!/^\d{1,15}$/.test(this.id)) { this.missing("This address names no run."); return; }
      let pause = 300;
      for (;;) {
        try {
          const answer = await fetch(`/live/runs/${this.id}/snapshot`);
          if (answer.status === 404) { this.missing((await answer.json()).problems.join(" ")); return; }
          if (answer.ok) { this.begin(await answer.json()); return; }
        } catch { /* the server is away: try again */ }
        await new Promise((done) => { setTimeout(done, pause); });
        pause = Math.min(pause * 1.7, 5000);
      }
    }

    begin(snapshot) {
      for (const [name, { steps, values }] of Object.entries(snapshot.series)) this.series.set(name, new Series(steps, values));
      this.lastId = snapshot.last_id;
      this.find("body").hidden = false;
      this.find("waiting").hidden = true;
      this.charts = snapshot.charts.map((chart) => this.chart(chart));
      this.known = new Set(snapshot.charts.flatMap((chart) => chart.lines.map((line) => line.metric)));
      this.run = {};
      this.wire();
      this.takeDetails(snapshot.details);
      this.takeAnswers(snapshot.answers, true);
      this.takeEvaluation(snapshot.evaluation);
      this.takeRun(snapshot.run);
      this.draw();
      document.addEventListener("graft:theme", () => { for (const chart of this.charts) if (chart.uplot) chart.build(); });
      this.socket = Graft.socket(
        () => `/live/runs/${this.id}?after=${this.lastId}&answers=${this.answers.size}`,
        (message) => this.heard(message),
        (state) => {
          this.find("connection").hidden = state === "open";
          if (state === "open") this.logOpened();
        });
      setInterval(() => this.tick(), 1000);
    }

    chart(declared) {
      return new RunChart(declared, this.series, this.find(declared.large ? "charts-large" : "charts-small"));
    }

    /* A metric that stands in no chart gets one, named after it. */
    chartOthers() {
      for (const name of this.series.keys()) {
        if (this.known.has(name)) continue;
        this.known.add(name);
        const title = name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
        const line = { metric: name, label: title, colour: "curve-1", dots: true };
        this.charts.push(this.chart({ key: name, title, kind: "plain", lines: [line] }));
      }
    }

    missing(text) {
      this.find("waiting").hidden = true;
      this.find("body").hidden = true;
      this.find("missing").hidden = false;
      this.find("missing-text").textContent = text;
    }

    heard(message) {
      if (message.gone) { this.missing(message.gone); return; }
      if (message.now) this.skew = message.now - Date.now() / 1000;
      if (message.details) this.takeDetails(message.details);
      if (message.run) this.takeRun(message.run);
      if (message.points) this.takePoints(message.points, message.id);
      if (message.evaluation !== undefined) this.takeEvaluation(message.evaluation);
      if (message.answers) this.takeAnswers(message.answers, message.answers_anew);
      if (message.log !== undefined) this.takeLog(message);
    }

    takePoints(points, id) {
      this.lastId = id;
      for (const [name, list] of Object.entries(points)) {
        if (!this.series.has(name)) this.series.set(name, new Series());
        const series = this.series.get(name);
        for (const [step, value] of list) series.push(step, value);
      }
      if (!this.frame) this.frame = requestAnimationFrame(() => this.draw(new Set(Object.keys(points))));
    }

    draw() {
      this.frame = 0;
      this.chartOthers();
      for (const name of ["charts-large", "charts-small"]) {
        this.find(name).hidden = this.charts.every((chart) => chart.card.parentNode !== this.find(name) || chart.empty);
      }
      for (const chart of this.charts) {
        if (chart.empty) { chart.card.hidden = true; continue; }
        chart.card.hidden = false;
        chart.refresh();
      }
      this.find("no-curve").hidden = this.charts.some((chart) => !chart.empty);
      this.find("no-curve").textContent = this.run.ended ? "It ended before its first step." : "The curve begins with the first step.";
      this.numbers();
      const newest = this.series.get("loss")?.steps.at(-1) ?? null;
      document.dispatchEvent(new CustomEvent("graft:drawn", { detail: { id: this.lastId, step: newest } }));
    }

    latest(name) { return this.series.get(name)?.last ?? null; }

    takeRun(changes) {
      const before = this.run.step ?? 0;
      Object.assign(this.run, changes);
      const { run } = this;
      if (run.step < before && !run.ended) { // a later attempt: what came after its checkpoint is void
        for (const series of this.series.values()) series.cut(run.step);
        if (!this.frame) this.frame = requestAnimationFrame(() => this.draw());
      }
      if ("name" in changes) {
        this.find("name").textContent = run.name;
        document.title = `${run.name} · Graft`;
      }
      const badge = this.find("badge");
      const [word, tone] = STATES[run.state] || [run.state, "plain"];
      badge.textContent = word;
      badge.className = `badge ${tone}`;
      this.find("words").textContent = run.words === word ? "" : run.words;
      const reason = this.find("reason");
      reason.hidden = !(run.ended && run.reason && run.state !== "completed") && !(run.state === "completed" && run.reason);
      if (!reason.hidden) {
        this.find("reason-text").textContent = run.reason;
        reason.className = `note ${run.state === "failed" ? "bad" : run.state === "interrupted" ? "warn" : "info"}`;
        this.find("reason-log").hidden = !["failed", "interrupted"].includes(run.state);
      }
      this.find("over-limit").hidden = !run.over_limit;
      this.find("over-limit-text").textContent = run.over_limit;
      this.find("worse").hidden = !run.worse;
      this.find("worse-text").textContent = run.worse;
      this.find("stop").hidden = run.ended;
      this.find("stop").disabled = !run.can_stop;
      this.find("stop").textContent = run.can_stop || run.ended ? "Stop" : "Stopping…";
      this.find("resume").hidden = !(run.ended && run.can_resume);
      this.find("delete").hidden = this.find("again").hidden = !run.ended;
      this.find("again").href = `/train?run=${this.id}`; // a new run, with this one's settings
      for (const name of ["chat", "download"]) this.find(name).hidden = !run.adapter_id;
      if (run.adapter_id) {
        [this.find("chat").textContent, this.find("chat").href] = run.try_it;
        this.find("download").textContent = `Download ${run.result}`;
        this.find("download").href = `/download/adapters/${run.adapter_id}`;
      }
      this.find("progress").hidden = !(run.total_steps && !run.ended);
      if (run.total_steps) {
        const share = Math.min(1, run.step / run.total_steps);
        this.find("bar").style.width = `${(share * 100).toFixed(1)}%`;
        this.find("progress").setAttribute("aria-valuenow", Math.round(share * 100));
      }
      this.numbers();
    }

    numbers() {
      const { run } = this;
      const put = (name, value, hint) => {
        const cell = this.find(`figure-${name}`);
        if (cell.children[1].textContent !== value) cell.children[1].textContent = value;
        if (hint !== undefined && cell.children[2].textContent !== hint) cell.children[2].textContent = hint;
      };
      put("step", run.step || run.total_steps ? grouped.format(run.step) : "–", run.total_steps ? `of ${grouped.format(run.total_steps)}` : "");
      const now = Date.now() / 1000 + this.skew;
      // by every attempt, not by the hours between two
      const taken = run.started_at ? run.trained_seconds + (run.active && run.attempt_at ? now - run.attempt_at : 0) : null;
      if (run.ended) put("time", duration(taken), run.attempt > 1 ? `in all, ${run.attempt} attempts` : "in all");
      // What was left at the last step, less what has gone by: a long step counts down, too.
      else put("time", run.active && run.eta_seconds != null ? duration(Math.max(0, run.eta_seconds - Math.max(0, now - run.eta_at))) : "–", taken == null ? "left" : `left · ${duration(taken)} so far`);
      put("loss", loss(this.latest("loss")), "at this step");
      put("eval", loss(this.latest("eval_loss")), "on unseen rows");
      put("best", loss(run.best_eval_loss), run.best_step == null ? "validation loss" : `at step ${grouped.format(run.best_step)}`);
      put("speed", plain(this.latest("tokens_per_second")), "tokens a second");
      const against = [["predicted", run.predicted_memory], ["limit", run.memory_limit]].filter(([, size]) => size);
      const peak = run.peak_memory ?? this.latest("memory");
      const texts = sizes([peak ?? 0, ...against.map(([, size]) => size)]);
      put("memory", peak == null ? "–" : texts[0], against.map(([what], at) => `${what} ${texts[at + 1]}`).join(", ") || "measured");
    }

    tick() { if (!this.run.ended) this.numbers(); }

    takeDetails(details) {
      const subtitle = this.find("subtitle");
      subtitle.textContent = details.subtitle;
      this.find("loop").textContent = details.loop;
      this.find("loop").hidden = !details.loop;
      const pairs = (list) => {
        const made = make("dl", "pairs");
        for (const [label, value] of list) made.append(make("dt", "", label), make("dd", "", value));
        return made;
      };
      this.find("facts").replaceChildren(pairs(details.facts));
      this.find("settings").replaceChildren(...details.settings.map(([title, list]) => {
        const group = make("div");
        group.append(make("h3", "", title), pairs(list));
        return group;
      }));
    }

    /* ---- What the newest evaluation found: HTML that the server made, and escaped ---- */
    takeEvaluation(html) { this.find("evaluation").innerHTML = html; }

    /* ---- Answers at the checkpoints ---- */
    takeAnswers(list, anew) {
      if (anew) this.answers.clear();
      for (const answer of list) this.answers.set(`${answer.step}/${answer.position}`, answer);
      const steps = [...new Set([...this.answers.values()].map((answer) => answer.step))].sort((a, b) => b - a);
      this.find("answers-card").hidden = !steps.length;
      if (!steps.length) return;
      const picker = this.find("answers-step"), chosen = Number(picker.value), newest = Number(picker.options[0]?.value ?? -1);
      picker.replaceChildren(...steps.map((step, i) => {
        const option = make("option", "", i === 0 ? `step ${grouped.format(step)} (newest)` : `step ${grouped.format(step)}`);
        option.value = step;
        return option;
      }));
      if (picker.options.length && steps.includes(chosen) && chosen !== newest) picker.value = chosen; // else: follow the newest
      this.showAnswers();
    }

    showAnswers() {
      const step = Number(this.find("answers-step").value);
      const shown = [...this.answers.values()].filter((answer) => answer.step === step).sort((a, b) => a.position - b.position);
      this.find("answers").replaceChildren(...shown.map((answer) => {
        const item = make("article", "answer");
        item.append(make("p", "answer-prompt", answer.prompt));
        const pair = make("div", "answer-pair");
        for (const [title, text, classes] of [["Base model", answer.base, "answer-base"], ["Tuned", answer.tuned, "answer-tuned"]]) {
          const side = make("div", classes);
          side.append(make("h4", "", title), make("p", "", text || "(nothing)"));
          pair.append(side);
        }
        item.append(pair);
        return item;
      }));
    }

    /* ---- The log ---- */
    logOpened() { this.socket?.say({ log: this.find("log-box").open ? (this.logOffset ?? -1) : null }); }

    takeLog({ log, log_anew: anew, log_offset: offset }) {
      const pane = this.find("log"), atEnd = pane.scrollTop + pane.clientHeight >= pane.scrollHeight - 20;
      this.logOffset = offset;
      const text = (anew ? "" : pane.textContent) + log;
      pane.textContent = text.length > 400000 ? text.slice(-300000) : text || "The log is empty.";
      if (anew || atEnd) pane.scrollTop = pane.scrollHeight;
    }

    wire() {
      const problems = this.find("problems");
      const ask = (name, question) => {
        const button = this.find(name);
        button.onclick = async () => {
          if (question && !confirm(question)) return;
          Graft.showProblems(problems, []);
          button.disabled = true;
          try {
            const answer = await Graft.post(`/live/runs/${this.id}/${name}`);
            if (answer.location) { location.href = answer.location; return; }
            button.disabled = false;
            if (answer.run) this.takeRun(answer.run);
          } catch (error) {
            button.disabled = false;
            Graft.showProblems(problems, error.problems || [String(error)]);
          }
        };
      };
      ask("stop");
      ask("resume");
      ask("delete", "Delete this run, its curves and its adapter? This cannot be undone.");
      this.find("answers-step").onchange = () => this.showAnswers();
      this.find("log-box").ontoggle = () => this.logOpened();
      this.find("reason-log").onclick = () => {
        const box = this.find("log-box");
        box.open = true;
        box.scrollIntoView({ block: "start" });
      };
    }
  }

  const STATES = {};
  Graft.run = (element, states) => {
    Object.assign(STATES, states);
    const page = new RunPage(element);
    window.Graft.runPage = page;
    page.open();
  };
})();
