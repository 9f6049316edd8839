/* The shell's own script: page title, theme toggle, and fragments that the server keeps fresh. No libraries. */
(() => {
  "use strict";
  const KEY = "graft-theme";
  const SUN = "M12 4V2M12 22v-2M4 12H2M22 12h-2M6.300 6.300 4.900 4.900M19.100 19.100l-1.400-1.400M6.300 17.700l-1.400 1.400M19.100 4.900l-1.400 1.400M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8Z";
  const MOON = "M20 14.500A8.500 8.500 0 1 1 9.500 4 7 7 0 0 0 20 14.500Z";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const asked = new URLSearchParams(location.search).get("__theme");

  function dark() {
    const choice = stored() || asked;
    return choice === "dark" || (choice !== "light" && system.matches);
  }

  function applyTheme() {
    const want = dark();
    if (document.body && document.body.classList.contains("dark") !== want) {
      document.body.classList.toggle("dark", want);
    }
    document.documentElement.classList.toggle("dark", want);
    for (const button of document.querySelectorAll("[data-theme-toggle]")) drawToggle(button);
    document.dispatchEvent(new CustomEvent("graft:theme"));
  }

  function drawToggle(button) {
    const label = dark() ? "Switch to the light theme" : "Switch to the dark theme";
    if (button.getAttribute("aria-label") === label) return;
    button.setAttribute("aria-label", label);
    button.title = label;
    button.innerHTML = `<svg viewBox="0 0 24 24" width="18" height="18" fill="none" stroke="currentColor" stroke-width="1.8"
      stroke-linecap="round" stroke-linejoin="round" aria-hidden="true"><path d="${dark() ? SUN : MOON}"/></svg>`;
  }

  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("[data-theme-toggle]")) return;
    try { localStorage.setItem(KEY, dark() ? "light" : "dark"); } catch { /* private window: lasts for this page */ }
    applyTheme();
  });
  system.addEventListener("change", applyTheme);
  // Gradio sets its class on the body by the system's preference, whenever it starts: a remembered choice wins.
  new MutationObserver(() => {
    if (document.body.classList.contains("dark") !== dark()) applyTheme();
  }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  applyTheme();

  // A card of choices is one text, its name and a line break before what explains it: a name may take two lines on a
  // narrow card, so it gets an element. Gradio's own text node stays, because Gradio writes into it.
  function nameCards() {
    for (const span of document.querySelectorAll(".choices label span")) {
      const text = [...span.childNodes].find((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
      const end = text ? text.data.indexOf("\n") : -1;
      if (end < 1) continue;
      const name = span.querySelector("b") || span.insertBefore(document.createElement("b"), text);
      name.textContent = text.data.slice(0, end).trim();
      text.data = text.data.slice(end);
    }
  }
  new MutationObserver(nameCards).observe(document.body, { childList: true, subtree: true, characterData: true });

  function page(title) {
    const full = title ? `${title} · Graft` : "Graft";
    document.title = full;
    // Gradio writes its own title once more when it has drawn the page.
    setTimeout(() => { document.title = document.title === "Graft" || !document.title ? full : document.title; }, 300);
    for (const button of document.querySelectorAll("[data-theme-toggle]")) drawToggle(button);
  }

  /* `found` gets the first element of this kind, now or as soon as Gradio has drawn it. */
  function whenDrawn(selector, found) {
    const look = () => { const element = document.querySelector(selector); if (element) found(element); return element; };
    if (look()) return;
    new MutationObserver((_, observer) => { if (look()) observer.disconnect(); })
      .observe(document.body, { childList: true, subtree: true });
  }

  /* What this tab holds from one load of a page to the next; nothing in a window that may keep nothing. */
  const tab = {
    put: (key, value) => { try { sessionStorage.setItem(key, value); } catch { /* lasts for this page */ } },
    take: (key) => {
      try {
        const value = sessionStorage.getItem(key);
        sessionStorage.removeItem(key);
        return value;
      } catch { return null; }
    },
  };

  /* The server no longer knows this page (queue.js). The train page's form and the playground's question outlive it.
     Not twice without a person's doing: returns whether it loads. */
  const ANEW = "graft-anew";
  let again = Boolean(tab.take(ANEW));
  for (const act of ["pointerdown", "keydown"]) addEventListener(act, () => { again = false; }, true);
  function loadAnew() {
    if (again) return false;
    tab.put(ANEW, "yes");
    location.reload();
    return true;
  }
  if (again) {
    whenDrawn(".page-header", (header) => {
      const note = document.createElement("div");
      note.className = "note";
      note.setAttribute("role", "status");
      note.textContent = "This page was loaded anew: Graft had been restarted, or no longer knew it. "
        + "What you did last is not done yet: please do it once more.";
      header.after(note);
    });
  }

  /* A socket that connects again by itself, with growing pauses. `path` is asked anew each time.
     `heard(message)` gets each JSON message; `state("open" | "lost")` says how the connection stands. */
  function socket(path, heard, state = () => {}) {
    let pause = 250, open = null, ended = false, timer = 0;
    function connect() {
      clearTimeout(timer);
      const made = open = new WebSocket(location.origin.replace(/^http/, "ws") + path());
      made.onopen = () => { state("open"); };
      made.onmessage = (event) => { pause = 250; heard(JSON.parse(event.data)); };
      made.onclose = (event) => {
        if (ended || made !== open || event.code === 4404) return;
        state("lost");
        timer = setTimeout(connect, pause + Math.random() * 100);
        pause = Math.min(pause * 1.7, 5000);
      };
    }
    connect();
    // Leaving: without this the page would call the lost connection an error. Coming back (bfcache): connect again.
    addEventListener("pagehide", () => { ended = true; open.close(); });
    addEventListener("pageshow", (event) => { if (event.persisted) { ended = false; connect(); } });
    return {
      say: (message) => { if (open.readyState === WebSocket.OPEN) open.send(JSON.stringify(message)); },
    };
  }

  /* Ask the server to do something. Resolves to its JSON; rejects with the problems, in words, as `problems`. */
  async function post(path) {
    let answer;
    try {
      answer = await fetch(path, { method: "POST" });
    } catch {
      throw { problems: ["Graft does not answer. Is it still running?"] };
    }
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw { problems: body.problems || ["Something went wrong. The reason is in logs/server.log."] };
    return body;
  }

  function showProblems(holder, problems) {
    holder.replaceChildren();
    if (!problems.length) return;
    const note = document.createElement("div");
    note.className = "note bad";
    note.setAttribute("role", "alert");
    for (const problem of problems) {
      const line = document.createElement("p");
      line.textContent = problem;
      note.append(line);
    }
    holder.append(note);
  }

  /* A button with data-post asks the server; it goes to the location that comes back. */
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("[data-post]");
    if (!button || button.disabled) return;
    const holder = document.getElementById("problems") || button.parentElement.appendChild(document.createElement("div"));
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
    try {
      const { location: next } = await post(button.dataset.post);
      if (next) { location.href = next; return; }
    } catch (error) {
      showProblems(holder, error.problems || [String(error)]);
    }
    button.disabled = false;
    button.removeAttribute("aria-busy");
  });

  /* HTML that the server made (and escaped), sent anew when it changes. Only what differs is replaced, by data-key,
     so that focus and selection stay where they are. */
  function fragment(element, name) {
    const holder = element.querySelector(".live");
    socket(() => `/live/fragments/${name}`, (message) => {
      if (message.gone) showProblems(holder, [message.gone]);
      if (message.html === undefined) return;
      const fresh = document.createElement("template");
      fresh.innerHTML = message.html;
      patch(holder, fresh.content);
      holder.removeAttribute("aria-busy");
    });
  }

  function patch(holder, fresh) {
    const keys = (root) => [...root.querySelectorAll("[data-key]")];
    const before = keys(holder), after = keys(fresh);
    const same = before.length && before.length === after.length
      && before.every((node, i) => node.dataset.key === after[i].dataset.key);
    if (!same) {
      holder.replaceChildren(fresh);
      return;
    }
    before.forEach((node, i) => {
      const asking = node.querySelector("[aria-busy=true]"); // its button waits for an answer: not now
      if (!asking && !node.isEqualNode(after[i])) node.replaceWith(after[i]);
    });
  }

  /* The playground's question. Gradio (6.31) reads a box a frame after the press that sends it, and writes it a while
     after reading: what is typed meanwhile would be sent too, or be lost. So its text is noted at the press, and the
     box is changed in one go, around the caret. */
  const question = (() => {
    const box = () => document.querySelector(".prompt-box textarea");
    let pressed = "";

    function note(event) { // before Gradio hears of it
      const sends = event.type === "click" ? event.target.closest?.(".ask-row .send")
        : event.key === "Enter" && !event.shiftKey && event.target === box();
      if (sends) pressed = box().value;
    }
    for (const press of ["keypress", "click"]) addEventListener(press, note, true);

    function change(text, end, caret = "preserve") { // in the place of the first `end` characters
      box().setRangeText(text, 0, end, caret);
      box().dispatchEvent(new Event("input", { bubbles: true })); // Gradio reads it from the box
    }

    // What was not sent is there again when the page is, also where Gradio loads it anew after a lost connection.
    const draft = () => `graft-question ${location.pathname}${location.search}`;
    addEventListener("pagehide", () => {
      if (box()?.value.trim()) tab.put(draft(), box().value);
      else tab.take(draft());
    });
    if (location.pathname.endsWith("/playground")) {
      whenDrawn(".prompt-box textarea", () => {
        const text = tab.take(draft());
        if (text && !box().value) change(text, 0, "end");
      });
    }

    return {
      /* What stood in the box at the press; once: another press is another question. */
      read() {
        const text = pressed;
        pressed = "";
        return text;
      },
      /* The server has it: it leaves the box; what was typed since stays. */
      taken(text) {
        if (pressed === text) pressed = ""; // the same question, pressed twice
        if (!text || !box().value.startsWith(text)) return;
        const rest = box().value.slice(text.length);
        change("", text.length + rest.length - rest.trimStart().length);
      },
      /* It was not answered: it comes back, before what is there. */
      back(text) {
        if (!text?.trim()) return;
        if (box().value.trim()) change(`${text}\n`, 0);
        else change(text, box().value.length, "end");
      },
    };
  })();

  window.Graft = { page, socket, post, showProblems, fragment, question, loadAnew, dark };
})();
