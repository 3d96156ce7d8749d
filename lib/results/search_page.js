// The search page works without this: it takes a dropped picture, and says that a search is running.
const form = document.getElementById("picture-form");
const input = document.getElementById("picture");
const status = document.getElementById("status");

function send() {
  if (!input.files.length) {
    return;
  }
  if (input.files[0].size > Number(form.dataset.mostBytes)) {
    const most = Number(form.dataset.mostBytes) / 2 ** 20;
    status.textContent = `the picture is too large (expected at most ${most} MB). Make it smaller`;
    return;
  }
  form.requestSubmit();
}

function hasFiles(event) {
  return event.dataTransfer !== null && event.dataTransfer.types.includes("Files");
}

form.querySelector("button").hidden = true;
document.querySelector("label[for=picture]").textContent =
  "A picture finds captions: select or drop one";
input.addEventListener("change", send);
document.addEventListener("submit", () => {
  status.textContent = "Searching …";
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) {
    status.textContent = "";
  }
});
document.addEventListener("dragover", (event) => {
  if (hasFiles(event)) {
    event.preventDefault();
    document.body.classList.add("dropping");
  }
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) {
    document.body.classList.remove("dropping");
  }
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (hasFiles(event) && event.dataTransfer.files.length) {
    event.preventDefault();
    input.files = event.dataTransfer.files;
    send();
  }
});
