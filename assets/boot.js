// Starts the page's program. A file of its own, because the page allows no inline script.
import("./page.js")
  .then((page) => page.default())
  .catch((error) => {
    document.getElementById("boot").textContent =
      `The page could not start. Reload it; if that does not help, use a current browser. (${error})`;
  });
