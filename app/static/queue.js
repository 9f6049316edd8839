/* Gradio's events on their way to the server and back: no result is lost, and the server is told their order.

   Gradio's client (6.31) opens an event stream when something is pending; the server ends it with `close_stream` when
   nothing is. An event that joins after the server has decided so, and is answered before the page has read it, finds
   a stream that the page believes open: the page opens no other and waits for ever. An upload beside the end of the
   page's own loading is enough, and a busy machine makes it likely. So the client gets one stream that never ends.
   Behind it is a connection while any event that has joined is not completed, and none while the page rests: a browser
   has six to a server, for all its tabs.

   A server that has restarted no longer knows what stands in the page's fields: it refuses the event of a page that
   was answered before, and the page loads itself anew (app/server.py, app.js).

   Each event also carries its number on the page: requests overtake one another, and the server draws lots between
   events that wait. A callback's notice gives way by that number (app/callbacks.py). */
(() => {
  "use strict";
  const network = window.fetch.bind(window);
  const joined = new Set();    // events whose result is still to come
  const completed = new Set(); // events whose result came before the answer to their joining
  const encoder = new TextEncoder();
  let order = 0, answered = false, own = null, stream = null, connected = false, leaving = false;
  addEventListener("pagehide", () => { leaving = true; });
  addEventListener("pageshow", () => { leaving = false; });

  window.fetch = (resource, options) => {
    const path = new URL(resource.url ?? resource, location.href).pathname;
    if (path.endsWith("/queue/join")) return join(resource, options);
    if (path.endsWith("/queue/data")) return open(new Request(resource, options));
    return network(resource, options);
  };

  async function join(resource, options) {
    const headers = new Headers(options?.headers);
    headers.set("x-graft-order", ++order);
    if (answered && own) headers.set("x-graft-page", own);
    const response = await network(resource, { ...options, headers });
    if (response.status === 409 && Graft.loadAnew()) return new Promise(() => {}); // nothing is said on a page that goes
    if (response.ok) {
      const { event_id: id } = await response.clone().json();
      if (!completed.delete(id)) {
        joined.add(id);
        connect();
      }
    }
    return response;
  }

  function open(request) {
    const mine = stream = { request, controller: null };
    own = new URL(request.url).searchParams.get("session_hash");
    const body = new ReadableStream({
      start(controller) { mine.controller = controller; },
      cancel() { if (stream === mine) stream = null; },
    });
    connect();
    return Promise.resolve(new Response(body, { headers: { "content-type": "text/event-stream" } }));
  }

  async function connect() {
    if (connected || !stream) return;
    connected = true;
    const { request, controller } = stream;
    try {
      do await relay(request.clone(), controller); while (joined.size);
      connected = false;
    } catch (error) { // Gradio says that the connection is lost, and reloads when the server answers again
      connected = false;
      if (leaving) return; // the browser ended it, and nobody is there to be told
      stream = null;
      joined.clear();
      try { controller.error(error); } catch { /* the page has let go of it */ }
    }
  }

  /* One connection, until the server closes it in order. */
  async function relay(request, controller) {
    const response = await network(request);
    if (!response.ok) throw new Error(`the event stream was refused: ${response.status}`);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "", closed = false;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const messages = (text + value).split("\n\n");
      text = messages.pop();
      for (const message of messages) {
        if (is(message, "close_stream")) { closed = true; continue; }
        const result = is(message, "process_completed");
        answered ||= Boolean(result);
        if (result && !joined.delete(result.event_id)) completed.add(result.event_id);
        controller.enqueue(encoder.encode(message + "\n\n"));
      }
    }
    if (!closed) throw new Error("the event stream ended early");
  }

  /* The message, where it is of this kind: most are not, and need no parsing. */
  function is(message, kind) {
    if (!message.includes(`"${kind}"`)) return null;
    const told = JSON.parse(message.slice(message.indexOf("{")));
    return told.msg === kind ? told : null;
  }
})();
