// Holds deploy/grafana/dashboard.json to Grafana's own types: what they do not know or want otherwise is
// told by the compiler, as if the dashboard were a program.

import { spawnSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const dashboard = JSON.parse(readFileSync(here("../../deploy/grafana/dashboard.json"), "utf8"));

// Of each kind of panel, what its options and its fields' looks may be.
const kinds = {
  stat: ["stat/panelcfg", "Options", null],
  table: ["table/panelcfg", "Options", "FieldConfig"],
  timeseries: ["timeseries/panelcfg", "Options", "FieldConfig"],
};

const parts = dashboard.panels.filter(({ type }) => type !== "row");
const code = JSON.stringify(parts);
console.log(code.length, kinds);
