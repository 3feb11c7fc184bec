
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const several = new Set(data.tables.map((table) => table.suite)).size > 1;
  const SHOWN_AT_FIRST = "quality";
  const views = [];
  let opener = null;
  let shownAt = "";

  // Texts enter the page as text nodes alone, so that no name can become markup.
  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === true) node.setAttribute(key, "");
      else if (value !== false && value != null) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child != null && child !== ""));
    return node;
  }
  function svg(tag, attributes, ...children) {
    const node = document.createElementNS(at("drawing").namespaceURI, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }
  const list = (lines) => make("ul", {}, ...lines.map((line) => make("li", {}, line)));
  const folded = (title, ...children) =>
    make("details", {}, make("summary", {}, title), ...children);
  const place = (table) => (several ? [table.suite, table.task].filter(Boolean).join(" / ") : table.task);
  const titleOf = (table) => (table.task ? place(table) : `Comparison over tasks${several ? `: ${table.suite}` : ""}`);
  const mark = (kind) => (kind ? make("span", { class: "mark" }, kind) : null);
  const pairs = (entries) =>
    make("dl", {}, ...entries.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]));
  const amount = (bytes) =>
    bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;

  // Tables

  function headCell(view, label, judge, column, task) {
    const button = make("button", { type: "button" }, task ? make("small", {}, task) : null,
      make("span", { class: "arrow" }, label));
    if (judge) button.append(make("small", {}, judge.trim()));
    button.addEventListener("click", () => sort(view, column));
    return make("th", { scope: "col", "aria-sort": "none" }, button);
  }

  function bodyCell(table, row, column, k) {
    const cell = row.cells[k];
    if (!cell) return make("td", { class: "none" }, "\u2013");
    const label = [row.name, row.kind, column.task, column.title, cell.text, cell.interval]
      .filter(Boolean).join(", ");
    const words = cell.bold ? make("b", {}, cell.text) : cell.text;
    const button = make(
      "button", { type: "button", tabindex: "-1", "aria-haspopup": "dialog", "aria-label": label },
      words, cell.interval ? make("small", {}, cell.interval) : null,
    );
    button.addEventListener("click", () => openDetail(...told(table, row, k), button));
    return make("td", {}, button);
  }

  // What a number of a comparison is told by: its task's table, and row and column there.
  function told(table, row, k) {
    const { task, key } = table.columns[k];
    if (!task) return [table, row, k];
    const own = data.tables.find((other) => other.suite === table.suite && other.task === task);
    return [own, own.rows.find((other) => other.name === row.name && other.kind === row.kind),
      own.columns.findIndex((column) => column.key === key)];
  }

  function build(table) {
    const view = { table, sorted: null, rows: [], heads: [] };
    view.heads = [
      headCell(view, "method", "", "name"),
      headCell(view, "seeds", "", "seeds"),
      ...table.columns.map((column, k) => headCell(view, column.title.replace(column.judge, ""), column.judge, k, column.task)),
    ];
    view.rows = table.rows.map((row, order) => {
      const node = make(
        "tr", { class: row.kind ? "marked" : null },
        make("th", { scope: "row" }, row.name, " ", mark(row.kind)),
        make("td", { class: "none" }, row.seeds),
        ...table.columns.map((column, k) => bodyCell(table, row, column, k)),
      );
      return { row, node, order };
    });
    view.body = make("tbody", {}, ...view.rows.map((line) => line.node));
    view.empty = make("p", { class: "empty", hidden: true }, "No method has such a name.");
    view.body.addEventListener("keydown", (event) => walk(view, event));
    const name = `${titleOf(table)}, methods by metrics`;
    view.node = make(
      "section", { id: table.id, "aria-label": titleOf(table) },
      make("h2", {}, titleOf(table)),
      ...table.notes.map((note) => make("p", { class: "note" }, note)),
      make(
        "div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${name}, scrolls sideways` },
        make("table", { "aria-label": name }, make("thead", {}, make("tr", {}, ...view.heads)), view.body),
        view.empty,
      ),
      table.said.length ? list(table.said) : null,
      folded("Caption and files", make("p", {}, table.caption), make("p", {}, table.times), filed(table.files)),
    );
    return view;
  }

  // Names, not links: the page may have been sent without its folder.
  const filed = (names) => make("p", { class: "soft" }, "In the folder of the report: ", names.join(", "));

  function keyOf(line, column) {
    if (column === "name") return line.row.name.toLowerCase();
    if (column === "seeds") return parseInt(line.row.seeds) || null;
    const cell = line.row.cells[column];
    return cell ? cell.value : null;
  }

  // First the better end of a column, then the other, then the order of the report again.
  function sort(view, column) {
    const better = typeof column === "number" ? view.table.columns[column].better : "lower";
    const first = better === "higher" ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const before = view.sorted && view.sorted.column === column ? view.sorted.direction : null;
    order(view, column, before === null ? first : before === first ? second : null);
    keep();
  }

  function order(view, column, direction) {
    view.sorted = direction ? { column, direction } : null;
    const sign = direction === "ascending" ? 1 : -1;
    const lines = [...view.rows].sort((a, b) => {
      if (!direction) return a.order - b.order;
      const [x, y] = [keyOf(a, column), keyOf(b, column)];
      if (x === null || y === null) return (x === null) - (y === null) || a.order - b.order;
      return x < y ? -sign : x > y ? sign : a.order - b.order;
    });
    view.body.append(...lines.map((line) => line.node));
    const index = column === "name" ? 0 : column === "seeds" ? 1 : column + 2;
    view.heads.forEach((head, k) => head.setAttribute("aria-sort", direction && k === index ? direction : "none"));
    rove(view);
  }

  // One stop of the Tab key a table; arrows, Home and End move between its cells.
  function buttons(view) {
    return [...view.body.rows].filter((row) => !row.hidden).map((row) =>
      [...row.cells].map((cell) => (cell.hidden ? null : cell.querySelector("button"))));
  }

  function rove(view, wanted) {
    const all = buttons(view).flat().filter(Boolean);
    const stop = wanted || all[0];
    view.body.querySelectorAll("button").forEach((button) => { button.tabIndex = button === stop ? 0 : -1; });
  }

  function walk(view, event) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const grid = buttons(view);
    let r = grid.findIndex((line) => line.includes(document.activeElement));
    if (r < 0) return;
    let k = grid[r].indexOf(document.activeElement);
    let step = moves[event.key];
    if (event.key === "Home") [k, step] = [-1, [0, 1]];
    if (event.key === "End") [k, step] = [grid[r].length, [0, -1]];
    if (!step) return;
    event.preventDefault();
    for (r += step[0], k += step[1]; grid[r] && k >= 0 && k < grid[r].length; r += step[0], k += step[1]) {
      if (grid[r][k]) {
        rove(view, grid[r][k]);
        grid[r][k].focus();
        grid[r][k].scrollIntoView({ block: "nearest", inline: "center" });
        return;
      }
    }
  }

  // Ablations: plain tables with their figures

  function plain(name, heads, { body, rules }) {
    const cell = ({ main, beside }, k) =>
      make(k ? "td" : "th", k ? {} : { scope: "row" }, main, beside ? make("small", {}, beside) : null);
    const rows = body.map((line, i) =>
      make("tr", { class: rules.includes(i) ? "part" : null }, ...line.map(cell)));
    const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
    return make(
      "div", { class: "scroll plain", role: "region", tabindex: "0", "aria-label": `${name}, scrolls sideways` },
      make("table", { "aria-label": name }, make("thead", {}, head), make("tbody", {}, ...rows)),
    );
  }

  const published = (grid) => make(
    "section", { id: "published", "aria-label": "Published elsewhere" },
    make("h2", {}, "Published elsewhere"), make("p", {}, grid.caption),
    plain("Published elsewhere", grid.header, grid));

  function ablation(made) {
    const { header, groups, caption } = made.grid;
    const lead = groups.filter((group) => !group).length; // then a value and a difference a metric
    const heads = header.map((head, i) => (i < lead || (i - lead) % 2 ? head : groups[i]));
    const node = make(
      "section", { id: made.id, "aria-label": made.title },
      make("h2", {}, made.title),
      ...made.notes.map((note) => make("p", { class: "note" }, note)),
      make("p", {}, made.question),
      ...made.figures.map((figure) => make("img", { class: "plot", src: figure.source, alt: figure.about })),
      made.left_out.length ? list(made.left_out) : null,
      plain(`${made.title}, variants by metrics`, heads, made.grid),
      made.said.length ? list(made.said) : null,
      folded("Caption, command and files", make("p", {}, caption),
        make("pre", { tabindex: "0" }, made.command), filed(made.files)),
    );
    return { made, node };
  }

  // Quality against cost: a plane a task, of the two columns that are chosen

  function plane(table, y, x) {
    const [width, height, left, low] = [340, 236, 48, 200];
    const points = table.rows.filter((row) => !row.kind && row.cells[y] && row.cells[x] && row.cells[x].value > 0);
    if (!points.length) return null;
    const ends = (values) => {
      const [a, b] = [Math.min(...values), Math.max(...values)];
      const edge = (b - a || Math.abs(a) || 1) * 0.12;
      return [a - edge, b + edge];
    };
    const [x0, x1] = ends(points.map((row) => Math.log(row.cells[x].value)));
    const sides = (row) => (row.cells[y].range || [row.cells[y].value]);
    const [y0, y1] = ends(points.flatMap(sides));
    const across = (value) => left + ((Math.log(value) - x0) / (x1 - x0)) * (width - left - 8);
    const up = (value) => low - ((value - y0) / (y1 - y0)) * (low - 28);
    const text = (words, more) => svg("text", { "font-size": 12, ...more }, words);
    const scale = points.map((row) => row.cells[x]).sort((a, b) => a.value - b.value);
    const marks = points.map((row) => svg("g", { fill: row.colour, stroke: row.colour },
      svg("title", {}, `${row.name}: ${row.cells[y].text} ${row.cells[y].interval}, ${row.cells[x].text}`),
      svg("path", { "stroke-width": 2, d: `M${across(row.cells[x].value)} ${sides(row).map(up).join("V")}` }),
      svg("circle", { cx: across(row.cells[x].value), cy: up(row.cells[y].value), r: 5 })));
    const ticks = [0, 0.5, 1].map((part) => y0 + (0.1 + 0.8 * part) * (y1 - y0));
    const digits = Math.max(0, 2 - Math.floor(Math.log10(y1 - y0 || 1)) - 1);
    return make("figure", { class: "plane" }, svg(
      "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${place(table)}: ${table.columns[y].title} by ${table.columns[x].title}` },
      text(`${place(table)}: ${table.columns[y].title}`, { x: 4, y: 14, class: "ink" }),
      ...ticks.map((tick) => svg("path", { d: `M${left} ${up(tick)}H${width}`, class: "rule" })),
      ...ticks.map((tick) => text(tick.toFixed(digits), { x: left - 6, y: up(tick) + 4, "text-anchor": "end" })),
      svg("path", { d: `M${left} ${low}H${width}`, class: "axis" }),
      text(scale[0].text, { x: across(scale[0].value), y: low + 15, "text-anchor": "middle" }),
      scale.at(-1).value > scale[0].value * 1.05 ? text(scale.at(-1).text, { x: across(scale.at(-1).value), y: low + 15, "text-anchor": "middle" }) : "",
      text(`${table.columns[x].title}, logarithmic`, { x: (left + width) / 2, y: low + 31, "text-anchor": "middle" }),
      ...marks));
  }

  function costs() {
    const axis = (group) => {
      const found = data.tables.flatMap((table) => table.columns.filter((column) => column.group === group));
      return [...new Map(found.map((column) => [column.key, column])).values()];
    };
    const firsts = { value: "", text: "first of each task" };
    const pick = (id, words, options) => make("label", {}, words, make("select", { id },
      ...options.map(({ value, text }) => make("option", { value }, text))));
    const named = (columns) => columns.map((column) => ({ value: column.key, text: column.title }));
    const planes = make("div", { class: "planes" });
    const names = new Map(data.tables.flatMap((table) => table.rows.filter((row) => !row.kind).map((row) => [row.name, row.colour])));
    const legend = make("ul", { class: "legend" }, ...[...names].map(([name, colour]) =>
      make("li", {}, svg("svg", { viewBox: "0 0 10 10" }, svg("circle", { cx: 5, cy: 5, r: 5, fill: colour })), name)));
    const node = make("section", { id: "cost", "aria-label": "Quality against cost" },
      make("h2", {}, "Quality against cost"),
      make("p", { class: "picks" }, pick("y", "Quality ", [firsts, ...named(axis("quality"))]), pick("x", "Cost ", named(axis("cost")))),
      planes, legend);
    const draw = () => {
      const [y, x] = [node.querySelector("#y").value, node.querySelector("#x").value];
      const task = at("controls").querySelector("[name=task]:checked").value;
      const drawn = data.tables.map((table) => {
        const [a, b] = [table.columns.findIndex((column) => (y ? column.key === y : column.group === "quality")), table.columns.findIndex((column) => column.key === x)];
        return (task === "" || task === table.id) && a >= 0 && b >= 0 ? plane(table, a, b) : null;
      });
      planes.replaceChildren(...drawn.filter(Boolean));
    };
    node.addEventListener("input", () => { draw(); keep(); });
    return { node, draw };
  }

  // The address says what is shown, so that it can be sent and kept

  function keep() {
    const state = new URLSearchParams();
    const say = (key, value) => value && state.set(key, value);
    say("at", shownAt);
    say("task", at("controls").querySelector("[name=task]:checked").value);
    say("find", at("find").value);
    say("only", at("only").checked ? "methods" : "");
    const boxes = [...at("columns").querySelectorAll("input")];
    const moved = boxes.filter((box) => box.checked !== box.defaultChecked);
    say("columns", moved.map((box) => box.value).join(";"));
    say("sort", views.filter((view) => view.sorted).map((view) => {
      const { column, direction } = view.sorted;
      return [view.table.id, typeof column === "number" ? columnKey(view.table.columns[column]) : column, direction].join("~");
    }).join(";"));
    if (plot) for (const key of ["y", "x"]) {
      const select = plot.node.querySelector(`#${key}`);
      say(key, select.selectedIndex ? select.value : "");
    }
    history.replaceState(null, "", `#${state}`);
  }
  const columnKey = (column) => `${column.task || ""} ${column.key}`;

  function restore() {
    const state = new URLSearchParams(location.hash.slice(1));
    const said = (key) => (state.get(key) || "").split(";").filter(Boolean);
    const radios = [...at("tasks").querySelectorAll("input")];
    (radios.find((radio) => radio.value === state.get("task")) || radios[0]).checked = true;
    at("find").value = state.get("find") || "";
    at("only").checked = state.get("only") === "methods";
    for (const box of at("columns").querySelectorAll("input"))
      box.checked = box.defaultChecked !== said("columns").includes(box.value);
    for (const view of views) {
      const [, key, direction] = (said("sort").map((one) => one.split("~")).find(([id]) => id === view.table.id)) || [];
      const k = view.table.columns.findIndex((column) => columnKey(column) === key);
      const known = ["ascending", "descending"].includes(direction) && (k >= 0 || ["name", "seeds"].includes(key));
      if (known) order(view, k >= 0 ? k : key, direction);
      else if (view.sorted) order(view, view.sorted.column, null);
    }
    if (plot) for (const key of ["y", "x"]) {
      const options = [...plot.node.querySelectorAll(`#${key} option`)];
      (options.find((option) => option.value === state.get(key)) || options[0]).selected = true;
    }
    show();
    shownAt = state.get("at") || "";
    const wanted = shownAt && document.getElementById(shownAt);
    if (wanted) wanted.scrollIntoView();
  }

  function contents() {
    const sections = [...document.querySelectorAll("main section")];
    at("contents").append(...sections.map((section) => {
      const link = make("a", { href: `#at=${section.id}` }, section.getAttribute("aria-label"));
      link.addEventListener("click", (event) => {
        event.preventDefault();
        shownAt = section.id;
        section.scrollIntoView();
        keep();
      });
      const item = make("li", {}, link);
      entries.set(section, item);
      return item;
    }));
  }

  // What to show

  function choices() {
    const shared = make("input", { type: "radio", name: "task", value: "", checked: true });
    at("tasks").append(make("label", {}, shared, make("span", {}, "all")));
    data.tables.forEach((table) => {
      const input = make("input", { type: "radio", name: "task", value: table.id });
      const hash = data.tables.filter((other) => place(other) === place(table)).length > 1;
      const text = place(table) + (hash ? ` ${table.rows[0].protocol.slice(0, 12)}` : "");
      at("tasks").append(make("label", {}, input, make("span", {}, text)));
    });
    const groups = new Map();
    for (const column of data.tables.flatMap((table) => table.columns)) {
      if (!groups.has(column.group)) groups.set(column.group, new Map());
      groups.get(column.group).set(column.key, column);
    }
    for (const [group, columns] of groups) {
      const boxes = [...columns.values()].map((column) => make(
        "label", {}, make("input", { type: "checkbox", value: column.key, checked: group === SHOWN_AT_FIRST }),
        ` ${column.title}`,
      ));
      at("columns").lastElementChild.append(make("fieldset", {}, make("legend", {}, group), ...boxes));
    }
    at("controls").addEventListener("input", () => { show(); keep(); });
    at("controls").addEventListener("submit", (event) => event.preventDefault());
  }

  function show() {
    const task = at("controls").querySelector("[name=task]:checked").value;
    const only = data.tables.find((table) => table.id === task);
    const words = at("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = new Set([...at("columns").querySelectorAll("input:checked")].map((box) => box.value));
    let [seen, all] = [0, 0];
    for (const view of views) {
      const { table } = view;
      view.node.hidden = Boolean(only) && (table.task ? table !== only : table.suite !== only.suite);
      table.columns.forEach((column, k) => {
        const hidden = !chosen.has(column.key) || Boolean(only && column.task && column.task !== only.task);
        view.heads[k + 2].hidden = hidden;
        for (const line of view.rows) line.node.cells[k + 2].hidden = hidden;
      });
      for (const line of view.rows) {
        const text = `${line.row.name} ${line.row.kind}`.toLowerCase();
        line.node.hidden = (at("only").checked && line.row.kind !== "") || !words.every((word) => text.includes(word));
      }
      const visible = view.rows.filter((line) => !line.node.hidden).length;
      view.empty.hidden = visible > 0;
      if (!view.node.hidden && table.task) [seen, all] = [seen + visible, all + view.rows.length];
      rove(view);
    }
    for (const { made, node } of varied)
      node.hidden = Boolean(only) && (made.task !== only.task || made.suite !== only.suite);
    if (plot) plot.draw();
    for (const [section, item] of entries) item.hidden = section.hidden;
    at("status").textContent =
      `${seen} of ${all} rows of tables. Choose a number (click, or arrow keys and Enter) to see samples, cost and protocol.`;
  }

  // Detail

  // A strip holds the pictures of all items side by side; its box shows the one of an item.
  function picture(gallery, strip, item, name) {
    const image = make("img", { src: gallery.strips[strip], alt: "" });
    image.style.width = `${gallery.items * 100}%`;
    image.style.marginLeft = `${item * -100}%`;
    return make("div", {}, make("div", { class: "tile" }, image), name);
  }

  function samples(table, row) {
    const title = make("h3", {}, "Samples");
    if (!row.pictures) {
      const own = table.without.filter((line) => line.startsWith(row.name));
      return [title, make("p", { class: "soft" }, own.join(" ") || "No tiles show samples of this row.")];
    }
    const gallery = data.galleries[row.pictures[0]];
    const others = table.rows.filter((other) => other !== row && other.pictures && other.pictures[0] === row.pictures[0]);
    const select = make("select", { id: "beside" }, make("option", { value: "" }, "nothing more"),
      ...others.map((other, i) => make("option", { value: String(i) }, other.name)));
    const items = make("div", { class: "items" });
    const draw = () => {
      const other = select.value === "" ? null : others[Number(select.value)];
      items.classList.toggle("four", other !== null);
      items.replaceChildren(...Array.from({ length: gallery.items }, (_, i) => make(
        "figure", { "aria-label": `item ${i + 1}`, role: "group" },
        picture(gallery, 0, i, "condition"),
        picture(gallery, row.pictures[1], i, row.name),
        other ? picture(gallery, other.pictures[1], i, other.name) : null,
        picture(gallery, gallery.strips.length - 1, i, "target"),
      )));
    };
    select.addEventListener("change", draw);
    draw();
    const words = `Seed ${gallery.seed}: the same items from the same initial noise for every method, chosen by a rule that looks at no sample.`;
    return [title, make("p", { class: "soft" }, words),
      others.length ? make("p", {}, make("label", {}, "Beside it: ", select)) : null, items];
  }

  function flat(value, prefix, found) {
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      for (const [key, inner] of Object.entries(value)) flat(inner, prefix ? `${prefix}.${key}` : key, found);
    } else found.push([prefix, typeof value === "string" ? value : JSON.stringify(value)]);
    return found;
  }

  function headline(column, cell) {
    const spread = cell.deviation ? `, standard deviation over seeds ${cell.deviation}` : "";
    const items = cell.items ? `${cell.items} items` : "";
    const best = cell.bold ? "Best of its column: told apart from the next best by the paired 95% interval." : "";
    return [
      make("p", {}, column.title, column.scale ? make("span", { class: "soft" }, `, ${column.scale}`) : null),
      make("p", { class: "figure" }, cell.text, " ", make("small", {}, cell.interval)),
      make("p", { class: "soft" }, items + spread),
      best ? make("p", {}, best) : null,
    ];
  }

  function provenance(row) {
    const runs = row.runs.map((i) => data.runs[i]);
    const found = [make("h3", {}, "Protocol"), make("p", {}, "Hash ", make("code", {}, row.protocol)),
      folded("Its values", pairs(flat(data.protocols[row.protocol], "", [])))];
    if (!runs.length) return found;
    const machines = [...new Set(runs.map((run) => run.machine))].join("; ");
    const commits = [...new Set(runs.map((run) => run.commit).filter(Boolean))].join(", ");
    return [...found, make("h3", {}, "Runs"),
      pairs([["seeds", row.trained.join(", ")], ["machine", machines], ...(commits ? [["commit", commits]] : [])]),
      make("p", {}, "Made again by:"),
      ...runs.map((run) => make("pre", { tabindex: "0" }, run.command))];
  }

  function openDetail(table, row, k, button) {
    const column = table.columns[k];
    const said = row.said[column.key] || [];
    const costs = row.costs.length
      ? [make("h3", {}, "Cost"), pairs(data.costNames.map((name, i) => [name, row.costs[i]])),
         make("p", { class: "soft" }, table.times)] : [];
    at("detail-title").replaceChildren(`${row.name} on ${place(table)} `, ...(row.kind ? [mark(row.kind)] : []));
    at("detail-body").replaceChildren(...[
      ...headline(column, row.cells[k]), said.length ? list(said) : null,
      ...samples(table, row), ...costs, ...provenance(row),
    ].filter(Boolean));
    opener = button;
    at("detail").showModal();
    at("detail").scrollTop = 0;
  }

  at("close").addEventListener("click", () => at("detail").close());
  at("detail").addEventListener("click", (event) => { if (event.target === at("detail")) at("detail").close(); });
  at("detail").addEventListener("close", () => {
    at("detail-body").replaceChildren();
    if (opener) opener.focus();
    opener = null;
  });

  const entries = new Map();
  views.push(...[...data.comparisons, ...data.tables].map(build));
  const varied = data.ablations.map(ablation);
  const plot = data.tables.some((table) => table.rows.some((row) => row.costs.length)) ? costs() : null;
  const compared = views.filter((view) => !view.table.task);
  at("tables").append(...compared.map((view) => view.node), plot ? plot.node : "",
    ...views.filter((view) => view.table.task).map((view) => view.node), ...varied.map((one) => one.node),
    ...data.published.map(published));
  at("facts").textContent = `${data.runs.length} runs, ${data.tables.length} ${data.tables.length === 1 ? "table" : "tables"}. Bold: best of its column, where told apart from the next best.`;
  at("how").textContent = data.how;
  at("footer").append(
    ...data.notes.map((note) => make("p", {}, note)),
    ...data.attribution.map((credit) => make("p", {}, credit)),
    make("p", { class: "soft" }, `Samples in this page: ${data.pictures.format}, at most ${data.pictures.largest} pixels wide, ${amount(data.pictures.bytes)} of it.`),
  );
  choices();
  contents();
  restore();
  addEventListener("hashchange", restore);
})();
