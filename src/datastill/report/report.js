for (const reel of document.querySelectorAll("[data-reel]")) {
  const frames = [...reel.querySelectorAll(".frame")];
  const slider = reel.querySelector("input");
  const caption = reel.querySelector("output");
  const button = reel.querySelector("[data-play]");
  let timer = 0;

  const show = (k) => {
    frames.forEach((frame, i) => frame.classList.toggle("on", i === k));
    slider.value = k;
    caption.textContent = frames[k].dataset.caption;
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  };
  const advance = () => {
    const next = Number(slider.value) + 1;
    show(next);
    if (next >= frames.length - 1) stop();
  };

  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  button.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (Number(slider.value) >= frames.length - 1) show(0);
    button.textContent = "Pause";
    timer = setInterval(advance, 400);
  });
}
