// node build.mjs [--check] [--out FOLDER] [--allow-warnings]: src/*.sol -> artifacts/<Contract>.json, the same bytes on every machine.
//
// An artefact is what the Python package needs (ABI, bytecode, deployed bytecode and where its immutables lie) and what
// a reader needs to build it again: compiler, settings, the sha-256 of each source. --check writes nothing and exits
// with 1 if the folder holds anything else than what the sources give.
import { createHash } from "node:crypto";
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";

const HERE = path.dirname(fileURLToPath(import.meta.url));
const solc = createRequire(import.meta.url)("solc");
const settings = JSON.parse(fs.readFileSync(path.join(HERE, "settings.json"), "utf8"));
const flags = process.argv.slice(2);
const check = flags.includes("--check");
const folder = flags.includes("--out") ? flags[flags.indexOf("--out") + 1] : path.join(HERE, "artifacts");

const fileOf = (name) => path.join(HERE, name.startsWith("@") ? "node_modules" : "", name);
const importsOf = (name, text) =>
  [...text.matchAll(/import\s+(?:[^;"']*?from\s+)?["']([^"']+)["']/g)].map(([, target]) =>
    target.startsWith(".") ? path.posix.join(path.posix.dirname(name), target) : target,
  );

const texts = new Map();
function load(name) {
  if (texts.has(name)) return;
  const text = fs.readFileSync(fileOf(name), "utf8");
  texts.set(name, text);
  importsOf(name, text).forEach(load);
}

/** `name` and all that it imports, in alphabetical order. */
function closure(name, seen = new Set()) {
  if (!seen.has(name)) {
    seen.add(name);
    importsOf(name, texts.get(name)).forEach((target) => closure(target, seen));
  }
  return [...seen].sort();
}

const shipped = fs.readdirSync(path.join(HERE, "src")).filter((name) => name.endsWith(".sol")).sort();
shipped.forEach((name) => load(`src/${name}`));
const input = {
  language: "Solidity",
  sources: Object.fromEntries([...texts.keys()].sort().map((name) => [name, { content: texts.get(name) }])),
  settings: {
    ...settings,
    outputSelection: {
      "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences"] },
    },
  },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
// A warning of ours is a fault as well; libraries warn of keywords to come.
const faults = (output.errors ?? []).filter(
  (message) =>
    message.severity === "error" ||
    !(flags.includes("--allow-warnings") || message.sourceLocation?.file.startsWith("@")),
);
for (const message of faults) console.error(message.formattedMessage);
if (faults.length) process.exit(2);

const sha256 = (text) => createHash("sha256").update(text).digest("hex");
const artifacts = new Map(
  shipped.map((file) => {
    const name = file.replace(/\.sol$/, "");
    const contract = output.contracts[`src/${file}`][name];
    const deployed = contract.evm.deployedBytecode;
    // Immutables by the place they lie at: the compiler names them by AST ids, which change with any edit.
    const immutables = Object.values(deployed.immutableReferences).flat().sort((a, b) => a.start - b.start);
    const artifact = {
      name,
      compiler: solc.version(),
      settings,
      sources: Object.fromEntries(closure(`src/${file}`).map((source) => [source, sha256(texts.get(source))])),
      abi: contract.abi,
      bytecode: `0x${contract.evm.bytecode.object}`,
      deployedBytecode: `0x${deployed.object}`,
      immutables,
    };
    return [`${name}.json`, `${JSON.stringify(artifact, null, 1)}\n`];
  }),
);

const held = fs.existsSync(folder) ? fs.readdirSync(folder).filter((name) => name.endsWith(".json")) : [];
const differing = [...new Set([...artifacts.keys(), ...held])].filter((name) => {
  const file = path.join(folder, name);
  return !artifacts.has(name) || !fs.existsSync(file) || fs.readFileSync(file, "utf8") !== artifacts.get(name);
});
if (check) {
  if (differing.length) console.error(`not what the sources give: ${differing.join(", ")}; run: node contracts/build.mjs`);
  process.exit(differing.length ? 1 : 0);
}
fs.mkdirSync(folder, { recursive: true });
for (const name of held) if (!artifacts.has(name)) fs.rmSync(path.join(folder, name));
for (const [name, text] of artifacts) fs.writeFileSync(path.join(folder, name), text);
for (const [name, text] of artifacts) {
  console.log(`${name.padEnd(24)} ${(JSON.parse(text).deployedBytecode.length - 2) / 2} bytes deployed`);
}
