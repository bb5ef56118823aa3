// Holds deploy/grafana/dashboard.json to Grafana's own types: written out as a program, what Grafana does
// not know or wants otherwise is the compiler's to tell.

import { spawnSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const dashboard = JSON.parse(readFileSync(path("../../deploy/grafana/dashboard.json"), "utf8"));

// The types of each kind of panel, where they are told and what of its fields' looks they know.
const kinds = { stat: ["stat", "Stat", "{}"], table: ["table", "Table"], timeseries: ["timeseries", "TimeSeries"] };

let program = `import type { Dashboard, DataSourceRef, FieldConfig, Panel, RowPanel, VariableModel } from "@grafana/schema";
// In JSON an enum is a plain value.
type Plain<T> = T extends string ? \`\${T}\` : T extends (infer E)[] ? Plain<E>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Of<Options, Looks> = Plain<Omit<Panel, "options" | "fieldConfig" | "targets"> & {
  datasource: DataSourceRef;
  options: Partial<Options>;
  fieldConfig: { defaults: Omit<FieldConfig, "custom"> & { custom?: Partial<Looks> }; overrides: [] };
}> & { targets: { refId: string; expr: string; legendFormat: string; instant: boolean; range: boolean;
  format: "time_series" | "table"; editorMode: "code"; datasource: Plain<DataSourceRef> }[] };
`;
for (const [name, [folder, file, looks]] of Object.entries(kinds)) {
  const from = `"@grafana/schema/dist/esm/raw/composable/${folder}/panelcfg/x/${file}PanelCfg_types.gen"`;
  program += `import type * as ${name} from ${from};\n`;
  program += `type of_${name} = Of<${name}.Options, ${looks ?? `${name}.FieldConfig`}>;\n`;
}
const { panels, templating, ...rest } = dashboard;
let number = 0;
const hold = (type, value) => (program += `export const _${number++}: ${type} = ${JSON.stringify(value)};\n`);
hold("Plain<Dashboard>", rest);
for (const variable of templating.list) hold("Plain<VariableModel>", variable);
for (const panel of panels) {
  if (panel.type === "row") hold("Plain<RowPanel>", panel);
  else if (panel.type in kinds) hold(`of_${panel.type}`, panel);
  else throw new Error(`${panel.title}: a panel of type ${panel.type} is not known here`);
}

writeFileSync(path("dashboard.ts"), program);
const compiler = path("node_modules/.bin/tsc");
const { status } = spawnSync(compiler, ["--project", path(".")], { stdio: "inherit" });
if (status === 0) rmSync(path("dashboard.ts"));
process.exit(status ?? 1);
