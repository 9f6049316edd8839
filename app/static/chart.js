/* How a run is drawn: numbers as people read them, a metric's points, and one chart of them (uPlot). */
(() => {
  "use strict";
  const MOST_POINTS = 9000; // a series longer than this is halved by keeping each bucket's lowest and highest

  /* ---- Numbers as people read them ---- */
  const grouped = new Intl.NumberFormat("en-US");
  function bytes(n) {
    if (n == null) return "–";
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (Math.abs(n) < 999.5) return `${unit === "B" || Math.abs(n) >= 99.95 ? n.toFixed(0) : n.toFixed(1)} ${unit}`;
      n /= 1000;
    }
    return `${n.toFixed(1)} TB`;
  }
  /* Sizes held against each other: in the largest one's unit, with decimals enough to differ. As `bytes_texts`. */
  function sizes(list) {
    const largest = Math.max(...list.map(Math.abs));
    const units = [["B", 1], ["kB", 1e3], ["MB", 1e6], ["GB", 1e9]];
    const [name, unit] = units.find((each) => largest < 999.5 * each[1]) || units.at(-1);
    let texts = [];
    for (let decimals = unit === 1 || largest >= 99.95 * unit ? 0 : 2; decimals < 5; decimals++) {
      texts = [...list, 0].map((size) => (size / unit).toFixed(decimals));
      if (new Set(texts).size === new Set([...list, 0]).size) break;
    }
    return texts.slice(0, -1).map((text) => `${text} ${name}`);
  }
  function loss(n) { return n == null ? "–" : Math.abs(n) >= 100 ? n.toFixed(0) : Math.abs(n) >= 10 ? n.toFixed(2) : n.toFixed(3); }
  function rate(n) {
    if (n == null) return "–";
    return n === 0 || Math.abs(n) >= 1e-6 ? String(+n.toPrecision(2)) : n.toExponential(1).replace("e-", "e−");
  }
  function plain(n) {
    if (n == null) return "–";
    const size = Math.abs(n);
    return size >= 10000 ? `${(n / 1000).toFixed(size >= 100000 ? 0 : 1)} k` : size >= 100 ? grouped.format(Math.round(n)) : String(+n.toPrecision(3));
  }
  function share(n) { return n == null ? "–" : `${String(+(n * 100).toPrecision(n > 0.0995 ? 3 : 2))} %`; }
  function duration(s) {
    if (s == null) return "–";
    s = Math.max(0, Math.round(s));
    if (s < 60) return `${s} s`;
    const two = (high, a, low, b) => (low ? `${high} ${a} ${low} ${b}` : `${high} ${a}`);
    if (s < 3600) return two(Math.floor(s / 60), "min", s % 60, "s");
    if (s < 172800) return two(Math.floor(s / 3600), "h", Math.floor((s % 3600) / 60), "min");
    return `${Math.floor(s / 86400)} days ${Math.floor((s % 86400) / 3600)} h`;
  }
  /* The numbers along an axis: as many decimals as its step needs. */
  function ticks(kind, values, step) {
    const unit = kind === "bytes" ? 1000 ** Math.max(0, Math.floor(Math.log10(Math.max(...values, 1)) / 3)) : 1;
    if (kind === "share") return values.map((value) => `${+(value * 100).toFixed(2)} %`);
    let digits = 0;
    while (digits < 8 && Math.abs(Math.round(step / unit * 10 ** digits) / 10 ** digits * unit / step - 1) > 1e-6) digits++;
    const name = { 1: "B", 1e3: "kB", 1e6: "MB", 1e9: "GB", 1e12: "TB" }[unit];
    return values.map((value) => {
      if (kind === "bytes") return value === 0 ? "0" : `${(value / unit).toFixed(digits)} ${name}`;
      return Math.abs(value) >= 10000 ? plain(value) : value.toFixed(digits);
    });
  }
  const FORMATS = { loss, rate, plain, bytes, share };

  function make(name, classes, text) {
    const made = document.createElement(name);
    if (classes) made.className = classes;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  const colour = (name) => getComputedStyle(document.body).getPropertyValue(`--g-${name}`).trim();

  /* ---- A metric's points, in order of their steps ---- */
  class Series {
    constructor(steps = [], values = []) { this.steps = steps; this.values = values; }
    get last() { return this.values.length ? this.values[this.values.length - 1] : null; }
    push(step, value) {
      const { steps, values } = this;
      if (steps.length && step <= steps[steps.length - 1]) this.cut(step - 1); // a later attempt goes over it again
      steps.push(step);
      values.push(value);
      if (steps.length > MOST_POINTS) this.halve();
    }
    cut(step) { // keep what is not after `step`
      let n = this.steps.length;
      while (n && this.steps[n - 1] > step) n--;
      this.steps.length = this.values.length = n;
    }
    halve() {
      const { steps, values } = this, keepWhole = steps.length >> 1; // the newer half stays as it is
      const kept = [0], width = 4;
      for (let start = 1; start < keepWhole; start += width) {
        let low = start, high = start;
        for (let i = start; i < Math.min(start + width, keepWhole); i++) {
          if (values[i] < values[low]) low = i;
          if (values[i] > values[high]) high = i;
        }
        kept.push(Math.min(low, high));
        if (low !== high) kept.push(Math.max(low, high));
      }
      for (let i = keepWhole; i < steps.length; i++) kept.push(i);
      this.steps = kept.map((i) => steps[i]);
      this.values = kept.map((i) => values[i]);
    }
    smooth() { // an exponential mean that is not pulled towards zero at the beginning
      // over a twenty-fifth of the curve: a short run is not drawn later than it was, a long one not nervous
      const keep = 1 - 2 / (Math.min(100, Math.max(3, this.values.length / 25)) + 1);
      let mean = 0, weight = 0;
      return this.values.map((value) => {
        mean = keep * mean + (1 - keep) * value;
        weight = keep * weight + (1 - keep);
        return mean / weight;
      });
    }
  }

  /* Two sorted lists of steps as one. Mostly one holds the other, or they are the same. */
  function merged(a, b) {
    if (a === b || !b.length) return a;
    if (!a.length) return b;
    const all = [];
    for (let i = 0, j = 0; i < a.length || j < b.length;) {
      const next = j >= b.length || (i < a.length && a[i] <= b[j]) ? a[i] : b[j];
      if (a[i] === next) i++;
      if (b[j] === next) j++;
      all.push(next);
    }
    return all;
  }
  /* A series' values on the steps of the whole chart; null where it has none. */
  function spread(all, steps, values) {
    if (all === steps) return values;
    let i = 0;
    return all.map((step) => (steps[i] === step ? values[i++] : null));
  }

  /* ---- One chart ---- */
  class RunChart {
    constructor(declared, series, holder) {
      this.declared = declared;
      this.series = series;
      this.format = FORMATS[declared.kind];
      this.card = make("section", `card chart${declared.large ? " chart-large" : ""}`);
      const head = make("div", "chart-head");
      head.append(make("h2", "", declared.title));
      this.legend = make("div", "chart-legend");
      head.append(this.legend);
      if (declared.lines.some((line) => line.smooth)) {
        const label = make("label", "chart-option");
        this.box = make("input");
        this.box.type = "checkbox";
        this.box.checked = true;
        this.box.onchange = () => { this.build(); };
        label.append(this.box, "Smooth");
        head.append(label);
      }
      this.plot = make("div", "chart-plot");
      this.plot.setAttribute("role", "img");
      this.card.append(head, this.plot);
      holder.append(this.card);
      new ResizeObserver(() => { if (this.uplot) this.uplot.setSize(this.size()); }).observe(this.plot);
      this.seen = true; // whether it is on the screen: what nobody sees is not drawn
      new IntersectionObserver((entries) => {
        this.seen = entries.at(-1).isIntersecting;
        if (this.seen) this.refresh();
      }, { rootMargin: "120px" }).observe(this.card);
    }
    get smooths() { return Boolean(this.box && this.box.checked); }
    size() { return { width: Math.max(120, this.plot.clientWidth), height: this.declared.large ? 300 : 170 }; }
    get empty() { return this.declared.lines.every((line) => !this.series.get(line.metric)?.steps.length); }

    lines() { // what is drawn: a smoothed line brings its faint original with it
      return this.declared.lines.flatMap((line) =>
        line.smooth && this.smooths ? [{ ...line, faint: true }, { ...line, mean: true }] : [line]);
    }
    data() {
      const found = this.declared.lines.map((line) => this.series.get(line.metric) || new Series());
      const steps = found.map((series) => series.steps).reduce(merged);
      return [steps, ...this.declared.lines.flatMap((line, i) => {
        const onto = (values) => spread(steps, found[i].steps, values);
        return line.smooth && this.smooths ? [onto(found[i].values), onto(found[i].smooth())] : [onto(found[i].values)];
      })];
    }
    /* Draw what is new: at once on the large chart, twice a second on the small ones, and only what is on the screen.
       Its numbers and its words for a screen reader are never behind. */
    refresh() {
      const series = this.declared.lines.map((line) => this.series.get(line.metric));
      const stamp = series.map((one) => (one ? `${one.steps.length}/${one.steps.at(-1)}` : "")).join();
      if (this.empty || stamp === this.stamp) return;
      if (!this.seen) { this.say(); return; } // its numbers hold all the same
      const wait = this.declared.large ? 0 : 500 - (performance.now() - (this.at ?? -1000));
      if (wait > 0) {
        this.timer ||= setTimeout(() => { this.timer = 0; this.refresh(); }, wait);
        return;
      }
      this.at = performance.now();
      this.stamp = stamp;
      this.update();
    }
    build() {
      this.uplot?.destroy();
      const text = colour("muted"), grid = colour("line");
      const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
      this.uplot = new uPlot({
        ...this.size(),
        padding: [10, 12, 0, 0],
        legend: { show: false },
        cursor: { sync: { key: "run" }, drag: { x: true, y: false }, points: { size: 7 } },
        scales: {
          x: { time: false },
          y: this.declared.kind === "share" ? { range: [0, 1] }
            : this.declared.from_zero ? { range: (_, low, high) => [0, (high || 1) * 1.1] } : {},
        },
        axes: [
          { ...axis, size: 26, values: (_, values) => values.map((step) => (Number.isInteger(step) ? grouped.format(step) : "")) },
          { ...axis, size: 62, values: (_, values, i, space, step) => ticks(this.declared.kind, values, step) },
        ],
        series: [{ label: "Step" }, ...this.lines().map((line) => ({
          label: line.label,
          stroke: line.faint ? colour(line.colour) + "55" : colour(line.colour),
          width: line.faint ? 1 : 2,
          spanGaps: true,
          points: line.dots ? { show: true, size: 7, fill: colour("surface"), width: 2 } : { show: line.faint ? false : undefined },
        }))],
        hooks: { setCursor: [() => this.say()] },
      }, null, this.plot);
      this.setData(true);
      this.say();
    }
    update() {
      if (!this.uplot) { if (!this.empty) this.build(); return; }
      // A zoomed chart stays where the person put it. (uPlot's own data may be the very lists that grew since.)
      const { min, max } = this.uplot.scales.x, [first, last] = this.range;
      const zoomed = first !== last && (min > first || max < last);
      this.setData(!zoomed);
      if (zoomed) this.uplot.redraw();
      this.say();
    }
    setData(fit) {
      const data = this.data();
      this.range = [data[0][0], data[0].at(-1)];
      this.uplot.setData(data, fit);
      const [first, last] = this.range;
      if (fit && first === last) this.uplot.setScale("x", { min: first, max: first + 1 }); // uPlot's axis would go to 100
    }
    say() { // the legend: the values under the cursor, else the newest
      const at = this.uplot?.cursor.idx, parts = [];
      const x = at == null ? null : this.uplot.data[0][at];
      for (const line of this.declared.lines) {
        const found = this.series.get(line.metric);
        if (!found?.steps.length) continue;
        let value = found.last;
        if (x != null) {
          const i = nearest(found.steps, x);
          value = found.values[i];
        }
        parts.push([line, value]);
      }
      const key = parts.map(([line, value]) => line.label + this.format(value)).join() + x;
      if (key === this.said) return;
      this.said = key;
      this.legend.replaceChildren(...parts.map(([line, value]) => {
        const part = make("span", "chart-key");
        const mark = make("i");
        mark.style.background = `var(--g-${line.colour})`;
        part.append(mark, parts.length > 1 || line.smooth ? `${line.label} ` : "", make("b", "number", this.format(value)));
        return part;
      }), ...(x == null ? [] : [make("span", "chart-step", `step ${grouped.format(x)}`)]));
      this.plot.setAttribute("aria-label",
        `${this.declared.title}: ` + parts.map(([line, value]) => `${line.label} ${this.format(value)}`).join(", "));
    }
  }

  function nearest(steps, x) { // the last index whose step is not after x
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (steps[middle] <= x) low = middle; else high = middle - 1;
    }
    return low;
  }

  Graft.drawing = { grouped, sizes, loss, plain, duration, make, Series, RunChart };
})();
