// The camera: its images are predicted one after the other.

// Starts it, or stops it if it runs. `show` predicts an image, `say` writes a message.
// Each frame is sent when the last one is answered, so that a slow service is asked less often.
export async function film(show, say) {
  const video = document.getElementById("video"), button = document.getElementById("camera");
  if (video.srcObject) {
    for (const track of video.srcObject.getTracks()) track.stop();
    video.srcObject = null;
    button.setAttribute("aria-pressed", "false");
    button.textContent = "Use the camera";
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 640 } } });
  } catch (error) {
    return say(`No camera: ${error.message}.`, "failed");
  }
  button.setAttribute("aria-pressed", "true");
  button.textContent = "Stop the camera";
  await video.play();
  while (video.srcObject) {
    const still = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    still.getContext("2d").drawImage(video, 0, 0);
    await show(await still.convertToBlob({ type: "image/jpeg", quality: 0.9 }));
    if (document.body.matches(".failed")) break;
    await new Promise(requestAnimationFrame);
  }
  if (video.srcObject) film(show, say); // it failed: the camera is switched off
}
