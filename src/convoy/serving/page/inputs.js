// Where images come from: a file, a drop, the clipboard, the camera, a drawing.

const find = (id) => document.getElementById(id);

/** Call `take(blob, name)` with every image that the user gives, and `refuse(reason)` where there is none. */
export function listen(take, refuse) {
  const given = (files, text) => {
    const file = [...files].find((one) => one.type.startsWith("image/")) ?? files[0];
    if (file) take(file, file.name);
    else refuse(text);
  };
  for (const input of [find("file"), find("phone")]) {
    input.addEventListener("change", () => {
      if (input.files.length) given(input.files);
      input.value = ""; // the same file may be chosen again
    });
  }
  listenForDrops(given);
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input, textarea") || !event.clipboardData) return;
    given(event.clipboardData.files, "The clipboard holds no image. Copy an image, not its address.");
  });
  listenToCamera(take, refuse);
  listenToSheet(take);
}

function listenForDrops(given) {
  const zone = find("drop");
  const over = (on) => zone.classList.toggle("over", on);
  // On the whole page: a browser would open an image that misses the zone.
  document.addEventListener("dragover", (event) => (event.preventDefault(), over(true)));
  document.addEventListener("dragleave", (event) => event.relatedTarget || over(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    given(event.dataTransfer.files, "No file was dropped. Save the image first, then drop the file.");
  });
}

function listenToCamera(take, refuse) {
  const [button, panel, video] = [find("camera"), find("camera-panel"), find("video")];
  const close = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    show(button, panel, false);
  };
  button.addEventListener("click", async () => {
    if (!panel.hidden) return close();
    // Browsers give pages a camera only over HTTPS or on this machine; a phone's own camera program always works.
    if (!navigator.mediaDevices) return find("phone").click();
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      find("shoot").disabled = true; // until there is a picture
      show(button, panel, true);
      await video.play();
      find("shoot").disabled = false;
      find("shoot").focus();
    } catch (error) {
      close();
      refuse(`The camera cannot be used: ${error.message || error.name}. Allow it in the browser, or choose a file.`);
    }
  });
  find("shoot").addEventListener("click", async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    take(await canvas.convertToBlob({ type: "image/png" }), "photo");
  });
  addEventListener("pagehide", close);
}

function listenToSheet(take) {
  const [button, panel, sheet, invert] = [find("draw"), find("draw-panel"), find("sheet"), find("invert")];
  const pen = sheet.getContext("2d");
  let strokes = [];
  const paint = () => {
    pen.fillStyle = invert.checked ? "#000" : "#fff";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.strokeStyle = invert.checked ? "#fff" : "#000";
    [pen.lineWidth, pen.lineCap, pen.lineJoin] = [sheet.width / 12, "round", "round"];
    for (const stroke of strokes) {
      pen.beginPath();
      for (const point of stroke) pen.lineTo(...point);
      pen.lineTo(...stroke[0].map((value, n) => (stroke.length > 1 ? stroke.at(-1)[n] : value))); // a dot is a line too
      pen.stroke();
    }
  };
  const hand = () => strokes.length && sheet.toBlob((blob) => take(blob, "drawing"));
  const place = (event) => {
    const box = sheet.getBoundingClientRect();
    return [((event.clientX - box.left) * sheet.width) / box.width, ((event.clientY - box.top) * sheet.height) / box.height];
  };
  button.addEventListener("click", () => (show(button, panel, panel.hidden), paint()));
  sheet.addEventListener("pointerdown", (event) => {
    sheet.setPointerCapture(event.pointerId);
    strokes.push([place(event)]);
    paint();
  });
  sheet.addEventListener("pointermove", (event) => {
    if (!sheet.hasPointerCapture(event.pointerId)) return;
    strokes.at(-1).push(place(event));
    paint();
  });
  sheet.addEventListener("pointerup", hand);
  find("erase").addEventListener("click", () => ((strokes = []), paint()));
  invert.addEventListener("change", () => (paint(), hand()));
}

function show(button, panel, open) {
  panel.hidden = !open;
  button.setAttribute("aria-expanded", String(open));
}
