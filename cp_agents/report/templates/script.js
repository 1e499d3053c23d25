(function () {
  "use strict";
  var root = document.documentElement;
  var button = document.getElementById("theme");
  var system = window.matchMedia("(prefers-color-scheme: dark)");
  function kept(value) {
    // A page from a file may have no storage.
    try {
      if (value) { localStorage.setItem("cp-agents-theme", value); }
      return localStorage.getItem("cp-agents-theme");
    } catch (error) { return null; }
  }
  function isDark() {
    var chosen = root.getAttribute("data-theme");
    return chosen ? chosen === "dark" : system.matches;
  }
  function name() { button.textContent = isDark() ? "Light" : "Dark"; }
  var before = kept();
  if (before === "dark" || before === "light") { root.setAttribute("data-theme", before); }
  button.hidden = false;
  button.addEventListener("click", function () {
    var next = isDark() ? "light" : "dark";
    root.setAttribute("data-theme", next);
    kept(next);
    name();
  });
  system.addEventListener("change", name);
  name();

  function value(row, column) {
    var cell = row.cells[column];
    var said = cell.hasAttribute("data-v") ? cell.getAttribute("data-v") : cell.textContent.trim();
    var number = parseFloat(said.replace(/,/g, ""));
    return isNaN(number) ? said.toLowerCase() : number;
  }
  function compare(a, b) {
    if (typeof a === typeof b) { return a < b ? -1 : a > b ? 1 : 0; }
    return typeof a === "number" ? 1 : -1;
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var heads = table.tHead.rows[0].cells;
    Array.prototype.forEach.call(heads, function (head, column) {
      var press = document.createElement("button");
      press.type = "button";
      while (head.firstChild) { press.appendChild(head.firstChild); }
      head.appendChild(press);
      press.addEventListener("click", function () {
        var down = head.getAttribute("aria-sort") === "descending";
        Array.prototype.forEach.call(heads, function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", down ? "ascending" : "descending");
        var body = table.tBodies[0];
        Array.prototype.slice.call(body.rows).sort(function (x, y) {
          return (down ? 1 : -1) * compare(value(x, column), value(y, column));
        }).forEach(function (row) { body.appendChild(row); });
      });
    });
  });

  var chosen = document.getElementById("attribute");
  if (chosen) {
    document.querySelector(".filter").hidden = false;
    chosen.addEventListener("change", function () {
      document.querySelectorAll(".case").forEach(function (item) {
        item.hidden = chosen.value !== "" && item.getAttribute("data-attribute") !== chosen.value;
      });
    });
  }
})();
