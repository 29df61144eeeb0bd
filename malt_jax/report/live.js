// A live page: asks its server what is new and replaces the sections, except the explorer, in which
// somebody may be reading; there a button loads the page again, at the same place.

(() => {
  const bar = document.createElement("p");
  bar.id = "live";
  bar.setAttribute("role", "status");
  document.getElementById("top").prepend(bar);
  let shown = null;

  const number = (value) => (typeof value === "number" ? Number(value.toPrecision(4)) : value);

  function say(state) {
    const last = state.last && ["stage", "role", "phase", "step", "loss"]
      .filter((name) => state.last[name] !== undefined).map((name) => `${name} ${number(state.last[name])}`).join(", ");
    bar.textContent = [
      state.done.includes("report") ? "finished" : `live; done: ${state.done.join(", ") || "nothing yet"}`,
      state.open.length ? `in work: ${state.open.join(", ")}` : "",
      `${state.trees} trees`,
      last ? `last logged ${state.age} s ago: ${last}` : "",
    ].filter(Boolean).join(" · ");
  }

  async function replace() {
    const text = await (await fetch("/")).text();
    const page = new DOMParser().parseFromString(text, "text/html");
    if (!document.getElementById("explorer")) return void location.reload();
    for (const section of document.querySelectorAll("main > section:not(#explorer)")) {
      const newer = section.id ? page.getElementById(section.id) : page.querySelector("section.head");
      if (newer) section.replaceWith(newer);
    }
    watchBoxes();
    const again = document.createElement("button");
    again.id = "again";
    again.textContent = "The run has more by now: load it into the explorer";
    again.addEventListener("click", () => location.reload());
    document.getElementById("again")?.remove();
    document.querySelector("#explorer h2").after(again);
  }

  async function ask() {
    try {
      const state = await (await fetch("/state")).json();
      say(state);
      if (shown !== null && state.version !== shown) await replace();
      shown = state.version;
    } catch {
      bar.textContent = "The server of this page has ended; what is shown is its last state.";
    }
    setTimeout(ask, 2000);
  }
  ask();
})();
