"use strict";
(() => {
  const pause = document.getElementById("pause"), state = document.getElementById("state");
  const mark = document.querySelector("meta[name=made-from]").content;
  let paused = sessionStorage.getItem("paused") === "yes";
  const label = () => {
    pause.setAttribute("aria-pressed", paused);
    pause.textContent = paused ? "Go on updating" : "Pause updates";
  };
  pause.addEventListener("click", () => {
    paused = !paused;
    sessionStorage.setItem("paused", paused ? "yes" : "no");
    label();
  });
  label();
  setInterval(async () => {
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(location.pathname + "?mark");
      if (answer.ok && (await answer.text()).trim() !== mark) location.reload();
    } catch {
      state.textContent = "The server does not answer";
    }
  }, 5000);
})();
