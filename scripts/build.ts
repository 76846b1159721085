// Builds dist/: the engine (asc; Binaryen's asyncify for the build that can pause), the scenarios, the API (tsc) and the
// CLI (esbuild).
// Usage: node scripts/run.mjs build [engine] [--force]
//
// Each part is skipped when no file it reads has changed since it was last built.

import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, relative } from 'node:path';
import asc from 'assemblyscript/asc';
import binaryen from 'binaryen';
import * as esbuild from 'esbuild';
import { parse as parseYaml } from 'yaml';

const root = process.cwd();
const at = (...parts: string[]) => join(root, ...parts);

/** A failed step whose message says all there is to say. */
class BuildError extends Error {}

// --- Stamps and the lock -----------------------------------------------------------------------------------------

/** Every file under `path`, or `path` itself, in a fixed order. */
function filesUnder(path: string): string[] {
  if (!existsSync(at(path))) return [];
  if (!statSync(at(path)).isDirectory()) return [path];
  return readdirSync(at(path))
    .sort()
    .flatMap((name) => filesUnder(`${path}/${name}`));
}

function hashOf(paths: string[]): string {
  const hash = createHash('sha256');
  for (const file of paths.flatMap(filesUnder))
    hash
      .update(file)
      .update('\0')
      .update(readFileSync(at(file)));
  return hash.digest('hex');
}

const always = ['package-lock.json', 'scripts/build.ts'];
const parts = {
  engine: {
    inputs: [...always, 'asconfig.json', 'assembly'],
    outputs: ['dist/eptsim.wasm', 'dist/eptsim.steps.wasm', 'dist/eptsim.debug.wasm', 'src/engine/layout.ts'],
    build: buildEngine,
  },
  scenarios: {
    inputs: [...always, 'scenarios'],
    outputs: ['src/scenario/built-in.ts'],
    build: buildScenarios,
  },
  api: {
    inputs: [...always, 'tsconfig.json', 'tsconfig.build.json', 'src'],
    outputs: ['dist/index.js', 'dist/index.d.ts'],
    build: buildApi,
  },
  cli: {
    inputs: [...always, 'package.json', 'src'],
    outputs: ['dist/cli/main.js', 'dist/cli/THIRD_PARTY_LICENSES.txt'],
    build: buildCli,
  },
};
type PartName = keyof typeof parts;

/** Holds build/lock while `work` runs, so that two builds at once (a test run beside a shell) take turns. */
async function withLock(work: () => Promise<void>): Promise<void> {
  const lock = at('build/lock');
  mkdirSync(at('build'), { recursive: true });
  const deadline = Date.now() + 180_000;
  for (;;) {
    try {
      mkdirSync(lock);
      break;
    } catch {
      const owner = existsSync(join(lock, 'pid')) ? Number(readFileSync(join(lock, 'pid'), 'utf8')) : 0;
      if ((owner !== 0 && !isAlive(owner)) || Date.now() > deadline) rmSync(lock, { recursive: true, force: true });
      else await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
  writeFileSync(join(lock, 'pid'), String(process.pid));
  try {
    await work();
  } finally {
    rmSync(lock, { recursive: true, force: true });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Writes through a rename, so that a reader sees the old file or the new one. */
function writeWhole(path: string, bytes: Uint8Array | string): void {
  mkdirSync(dirname(at(path)), { recursive: true });
  writeFileSync(at(`${path}.tmp`), bytes);
  renameSync(at(`${path}.tmp`), at(path));
}

// --- The engine --------------------------------------------------------------------------------------------------

// A WebAssembly feature by asc's name for it: asc's constant for it and Binaryen's bit.
const optionalFeatures: Record<string, { constant: string; bit: number }> = {
  threads: { constant: 'ASC_FEATURE_THREADS', bit: binaryen.Features.Atomics },
  simd: { constant: 'ASC_FEATURE_SIMD', bit: binaryen.Features.SIMD128 },
  'reference-types': { constant: 'ASC_FEATURE_REFERENCE_TYPES', bit: binaryen.Features.ReferenceTypes },
  'relaxed-simd': { constant: 'ASC_FEATURE_RELAXED_SIMD', bit: binaryen.Features.RelaxedSIMD },
};
const defaultFeatures =
  binaryen.Features.MutableGlobals |
  binaryen.Features.SignExt |
  binaryen.Features.NontrappingFPToInt |
  binaryen.Features.BulkMemory |
  binaryen.Features.BulkMemoryOpt;

/** What the engine may import, beside env.pause where it can pause. */
const allowedImports = {
  release: ['env.memory'],
  debug: ['env.memory', 'env.abort'],
};

/** The names in asconfig.json's `enable` lists. asc takes any name there without a word, so each must be known. */
function enabledFeatures(target: string): string[] {
  const config = JSON.parse(readFileSync(at('asconfig.json'), 'utf8'));
  const names: string[] = [...(config.options?.enable ?? []), ...(config.targets?.[target]?.enable ?? [])];
  for (const name of names) {
    if (!(name in optionalFeatures)) {
      throw new BuildError(
        `asconfig.json enables '${name}', which is none of ${Object.keys(optionalFeatures).join(', ')}`,
      );
    }
  }
  return names;
}

async function compile(entry: string, target: 'debug' | 'release'): Promise<Uint8Array> {
  const features = enabledFeatures(target);
  // A second entry that stops the compile where a requested feature is off.
  const probe = `build/features-${target}.ts`;
  writeWhole(
    probe,
    features
      .map((name) => optionalFeatures[name]!.constant)
      .map((constant) => `if (!${constant}) ERROR("${constant} is off although asconfig.json enables it");\n`)
      .join(''),
  );
  const entries = features.length > 0 ? [entry, probe] : [entry];
  const wasmFile = `build/asc-${target}.wasm`;
  rmSync(at(wasmFile), { force: true });
  let diagnostics = 0;
  const { error, stderr } = await asc.main([...entries, '--target', target, '--outFile', wasmFile], {
    reportDiagnostic: (diagnostic) => {
      // Category 0 is pedantic and 1 is info; 2 (warning) and 3 (error) both stop the build.
      if (Number(diagnostic.category) >= 2) diagnostics++;
    },
  });
  const said = stderr.toString();
  if (error !== null) throw new BuildError(`asc ${entry} (${target}):\n${said || error.message}`);
  if (diagnostics > 0) throw new BuildError(`asc ${entry} (${target}) warns, which stops the build:\n${said}`);
  return readFileSync(at(wasmFile));
}

/**
 * Functions on the way of a small range, a whole guest, a fault or a conversion, by file: there a call costs what has no
 * time. Everything else is made small, as copies cost what a download has no room for.
 */
const hot: Record<string, string[]> = {
  abi: ['abiAccess', 'abiGfnRange', 'abiSetMemoryAttributes'],
  attributes: ['allArePrivate', 'partIsPrivate', 'setAttributes'],
  blocks: ['wantCut'],
  check: ['inspectSpte', 'inspectSptes', 'spteAt', 'spteBelow'],
  entry: ['setUniform'],
  gfn_range: [
    ...['doRange', 'findEntries', 'lookBeside', 'takesRanges', 'vmCheckGfnRanges', 'vmGfnRange', 'vmGfnRanges'],
    ...['zapFound'],
  ],
  host_mm: ['hostFaultPlain'],
  invalidate: ['mmuInvalidateBegin'],
  leaf_table: [
    ...['addPlane', 'emptyLeafTable', 'ltAdd', 'ltClear', 'ltClearInWord', 'ltFlags', 'ltFlagsUnguessed'],
    ...['ltModify', 'ltSelect', 'ltSet', 'releasePlanes', 'valueWord', 'wordPtr'],
  ],
  mem_attributes: [
    ...['guardRegion', 'postSetMemoryAttributes', 'preSetMemoryAttributes', 'regionHasAttributes', 'reserveSet'],
    ...['setMemAttributes', 'setMixed', 'setRegionMixed', 'wantMixed'],
  ],
  memslots: ['firstPlaceByGfn', 'gfnToMemslot', 'isMixed', 'slotAtPlace'],
  mmu: ['ageGfn', 'testAgeGfn', 'unmapGfnRange', 'wantGfnRange'],
  page_fault: ['extendRun', 'faultPlain', 'reserveFault'],
  page_table: [
    ...['flagsIn', 'fold', 'leafTableAt', 'treeCount', 'treeEntryNear', 'treeFlags', 'treeHolds', 'treeSet'],
    ...['zapEntryAt', 'zapEntryChunk', 'zapEntryLeaf', 'zapEntryLevel', 'zapEntryTouch'],
  ],
  tdp_iter: ['emitLeafTable', 'emitRuns', 'leafTable', 'uniform', 'uniformAtOnce', 'visit', 'walkEntry', 'walkPiece'],
  tdp_mmu: [
    ...['countLeafs', 'isPlain', 'settle', 'tdpMmuAge', 'tdpMmuCountFaults', 'tdpMmuLook', 'tdpMmuMapAbsent'],
    ...['tdpMmuUnmapRange', 'walkAtOnce', 'walkRange', 'wantWalk', 'zapInLeafTable', 'zapped'],
  ],
  tlb: ['flushIfAsked'],
  vcpu: ['accessPlain'],
};
/** What is inlined into hot functions, by file. */
const inlined: Record<string, string[]> = {
  abi: ['u64Of'],
  blocks: ['release', 'reserve', 'wantCuts'],
  check: ['gfnOf', 'isGfnWithin'],
  control: ['count'],
  chunks: ['chunkClear', 'chunkFlags'],
  dirty_log: ['markPagesDirty'],
  entry: ['childPtr', 'descriptor', 'indexAt', 'pagesOf'],
  gfn_range: ['answer', 'doRange', 'lookBeside', 'takesRanges', 'vmGfnRange'],
  host_mm: ['hostFaultPlain', 'setResult'],
  leaf_table: [
    ...['emptyLeafTable', 'ltClearCounted', 'ltClearInWord', 'ltFlags', 'ltFlagsUnguessed'],
    ...['presencePtr', 'releasePlanes', 'valueWord'],
    ...['wordMask', 'wordPtr', 'wordStep'],
  ],
  memslots: ['memslotAt', 'mixedTree', 'orderPtr', 'slotAtPlace'],
  mmu: ['ageGfn', 'testAgeGfn'],
  page_fault: ['faultPlain', 'reservesAnyFault'],
  page_table: [
    ...['leafTableAt', 'treeEntryNear', 'zapEntryAt', 'zapEntryChunk', 'zapEntryLeaf', 'zapEntryLevel'],
    ...['zapEntryTouch'],
  ],
  pause: ['gate'],
  tdp_mmu: [
    ...['isPlain', 'keyBitsOf', 'maxGfnExclusive', 'mayFoldIn', 'mayStop', 'newLeafFlags', 'nextRoot', 'settle'],
    ...['tdpMmuCountFaults', 'tdpMmuLook', 'tdpMmuMapAbsent', 'zapInLeafTable'],
  ],
  tlb: ['flushIfAsked'],
  trace: ['codeOfFlags', 'putSptes'],
  vendor: ['vendorRootsOfRange'],
};
/** Parts of an expression up to which any function is inlined anywhere: a call is no smaller. */
const TINY = 6;

/** The names in Wasm of `names`, each of which must be in its file. */
function namesInWasm(names: Record<string, string[]>): Set<string> {
  const all = new Set<string>();
  for (const [file, functions] of Object.entries(names)) {
    const code = readFileSync(at(`assembly/${file}.ts`), 'utf8');
    for (const name of functions) {
      if (!code.includes(`function ${name}(`)) throw new BuildError(`assembly/${file}.ts has no ${name}()`);
      all.add(`assembly/${file}/${name}`);
    }
  }
  return all;
}

/**
 * Inlines into the hot functions what they call, and elsewhere only what is tiny. Binaryen knows only functions that are
 * inlined everywhere or nowhere, so each that hot functions inline gets a copy for the others to call.
 */
function inline(module: binaryen.Module): binaryen.Module {
  const hotNames = namesInWasm(hot);
  const inlinedNames = namesInWasm(inlined);
  const parts = new Map<string, number>();
  for (let index = 0; index < module.getNumFunctions(); index++) {
    const { name, body } = binaryen.getFunctionInfo(module.getFunctionByIndex(index));
    if (body !== 0) parts.set(name, binaryen.emitText(body).match(/\(/g)?.length ?? 0);
  }
  const isCopied = (name: string) => inlinedNames.has(name) && parts.has(name);
  const copyOf = (name: string) => `${name}/called`;
  const callingCopies = (text: string) =>
    text.replace(/\(call \$([^\s()]+)/g, (call, name) => (isCopied(name) ? `(call $${copyOf(name)}` : call));
  const keptApart: string[] = [];
  // A function's text ends where the next begins, the last one's at the module's own closing bracket.
  const [head, ...functions] = module
    .emitText()
    .trimEnd()
    .replace(/\)$/, '')
    .split(/\n (?=\(func )/);
  const text = functions.flatMap((code) => {
    const name = /^\(func \$([^\s()]+)/.exec(code)![1]!;
    const own = hotNames.has(name) ? code : callingCopies(code);
    // Else it would be inlined, and its own calls not.
    if (isCopied(name) && !hotNames.has(name) && own !== code) {
      throw new BuildError(`${name} is inlined and calls what is inlined: it must be among the hot ones too`);
    }
    if (!isCopied(name)) {
      if (parts.get(name)! > TINY) keptApart.push(name);
      return own;
    }
    keptApart.push(copyOf(name));
    return [own, callingCopies(code).replace(`(func $${name}`, `(func $${copyOf(name)}`)];
  });
  const marked = binaryen.parseText([head, ...text, ')'].join('\n'));
  marked.setFeatures(module.getFeatures());
  for (const name of keptApart) {
    binaryen.setPassArgument('no-full-inline', name);
    marked.runPasses(['no-full-inline']);
  }
  binaryen.setAlwaysInlineMaxSize(1000);
  // Before anything else: copies that are still alike would be made one.
  marked.runPasses(['inlining-optimizing']);
  return marked;
}

/** The one constant that stays in the engine's files: it says that src/engine/layout.ts belongs to them. */
const KEPT_CONSTANT = 'LAYOUT_HASH';

/** Names of functions in the order in which src/engine/layout.ts has them, and the engine's files number them. */
const inOrder = (names: string[]) => [...names].sort();

/** Takes out what src/engine/layout.ts knows: the constants, and the names of the functions, which become numbers. */
function shortenExports(module: binaryen.Module): void {
  const functions = new Map<string, string>();
  const constants = [];
  for (let index = 0; index < module.getNumExports(); index++) {
    const { name, kind, value } = binaryen.getExportInfo(module.getExportByIndex(index));
    if (kind === binaryen.ExternalKinds.Function) functions.set(name, value);
    else if (kind === binaryen.ExternalKinds.Global && name !== KEPT_CONSTANT) constants.push(name);
  }
  for (const name of [...constants, ...functions.keys()]) module.removeExport(name);
  for (const [index, name] of inOrder([...functions.keys()]).entries()) {
    module.addFunctionExport(functions.get(name)!, index.toString(36));
  }
}

/** src/engine/layout.ts: the values of the constants that `wasm` exports, and the names of the functions. */
function layoutOf(wasm: Uint8Array): string {
  const memory = new WebAssembly.Memory({ initial: 1 });
  const module = new WebAssembly.Module(wasm as BufferSource);
  const { exports } = new WebAssembly.Instance(module, { env: { memory, pause() {} } });
  const names = inOrder(Object.keys(exports));
  const constants = names.flatMap((name) => {
    const value = exports[name];
    return value instanceof WebAssembly.Global ? [`  ${name}: ${value.value >>> 0},`] : [];
  });
  const functions = names.flatMap((name) => (typeof exports[name] === 'function' ? [`  '${name}',`] : []));
  return [
    '// Built from assembly/ by scripts/build.ts; change the files there.',
    '/** Addresses and sizes in the memory of a VM, in bytes. */',
    `export const layout = {\n${constants.join('\n')}\n} as const;`,
    "/** The functions of assembly/index.ts: the engine's files export each as its place here, in base 36. */",
    `export const exportNames = [\n${functions.join('\n')}\n] as const;`,
    '',
  ].join('\n');
}

/** In a build that never pauses, env.pause is a trap: one import less to compile a wrapper for. */
function withoutPause(module: binaryen.Module): void {
  for (let index = 0; index < module.getNumFunctions(); index++) {
    const { name, module: from, base, params, results } = binaryen.getFunctionInfo(module.getFunctionByIndex(index));
    if (from !== 'env' || base !== 'pause') continue;
    module.removeFunction(name);
    module.addFunction(name, params, results, [], module.unreachable());
    return;
  }
  throw new BuildError('the engine does not import env.pause');
}

/**
 * Optimises once more. With `canPause` lets env.pause, and no other import, suspend the engine in the middle of a call
 * (Binaryen's asyncify), which leaves much behind that the optimiser removes.
 */
function finish(wasm: Uint8Array, target: 'debug' | 'release', canPause: boolean): Uint8Array {
  const bits = enabledFeatures(target).reduce((all, name) => all | optionalFeatures[name]!.bit, defaultFeatures);
  binaryen.setDebugInfo(true);
  let module = binaryen.readBinaryWithFeatures(wasm, bits);
  try {
    binaryen.setOptimizeLevel(target === 'release' ? 3 : 1);
    binaryen.setShrinkLevel(target === 'release' ? 1 : 0);
    shortenExports(module);
    if (!canPause) withoutPause(module);
    if (target === 'release') {
      const called = module;
      module = inline(called);
      called.dispose();
    }
    if (canPause) {
      binaryen.setPassArgument('asyncify-imports', 'env.pause');
      binaryen.setPassArgument('asyncify-ignore-indirect', '1');
      module.runPasses(['asyncify']);
    }
    module.optimize();
    if (target === 'release') module.optimize();
    if (!module.validate()) throw new BuildError(`the ${target} module is not valid after Binaryen's passes`);
    binaryen.setDebugInfo(target === 'debug');
    return module.emitBinary();
  } finally {
    module.dispose();
  }
}

/** Where the static data of a module stands: [start, end) of each segment. */
function dataSegments(wasm: Uint8Array): [start: number, end: number][] {
  const segments: [number, number][] = [];
  let at = 8;
  const leb = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = wasm[at++]!;
      value |= (byte & 127) << shift;
      if (byte < 128) return value >>> 0;
    }
  };
  while (at < wasm.length) {
    const section = wasm[at++];
    const end = leb() + at;
    if (section === 11) {
      for (let count = leb(); count > 0; count--) {
        // Flags 0, then i32.const START, end: an active segment of the one memory. START is below 2^31.
        if (leb() !== 0 || wasm[at++] !== 0x41) throw new BuildError('a data segment is not at a constant address');
        const start = leb();
        at++;
        const bytes = leb();
        segments.push([start, start + bytes]);
        at += bytes;
      }
    }
    at = end;
  }
  return segments;
}

/** The constants of assembly/layout.ts: without its types it is JavaScript. */
async function memoryLayout(): Promise<Record<string, number>> {
  const { code } = esbuild.transformSync(readFileSync(at('assembly/layout.ts'), 'utf8'), { loader: 'ts' });
  return import(`data:text/javascript,${encodeURIComponent(code)}`);
}

async function checkEngine(wasm: Uint8Array, target: 'debug' | 'release', canPause: boolean): Promise<void> {
  const module = await WebAssembly.compile(wasm as BufferSource);
  const imports = WebAssembly.Module.imports(module).map((entry) => `${entry.module}.${entry.name}`);
  const allowed = [...allowedImports[target], ...(canPause ? ['env.pause'] : [])];
  const surplus = imports.filter((name) => !allowed.includes(name));
  if (surplus.length > 0) {
    throw new BuildError(`the ${target} engine imports ${surplus.join(', ')}; allowed: ${allowed.join(', ')}`);
  }
  const { TEXTS_BASE: base, TEXTS_BYTES: bytes } = await memoryLayout();
  for (const [start, end] of dataSegments(wasm)) {
    if (!(start >= base! && end <= base! + bytes!)) {
      throw new BuildError(`the ${target} engine has static data at [${start}, ${end}), outside TEXTS (layout.ts)`);
    }
  }
  const names = WebAssembly.Module.exports(module).map((entry) => entry.name);
  for (const name of [
    'asyncify_start_unwind',
    'asyncify_stop_unwind',
    'asyncify_start_rewind',
    'asyncify_stop_rewind',
  ]) {
    if (names.includes(name) !== canPause) {
      throw new BuildError(`the ${target} engine ${canPause ? 'does not export' : 'exports'} ${name}`);
    }
  }
}

async function buildEngine(): Promise<void> {
  const debugEntry = existsSync(at('assembly/index.debug.ts')) ? 'assembly/index.debug.ts' : 'assembly/index.ts';
  const put = async (asc: Uint8Array, target: 'debug' | 'release', canPause: boolean, outFile: string) => {
    const wasm = finish(asc, target, canPause);
    await checkEngine(wasm, target, canPause);
    writeWhole(outFile, wasm);
  };
  await put(await compile(debugEntry, 'debug'), 'debug', true, 'dist/eptsim.debug.wasm');
  const release = await compile('assembly/index.ts', 'release');
  writeWhole('src/engine/layout.ts', layoutOf(release));
  await put(release, 'release', false, 'dist/eptsim.wasm');
  await put(release, 'release', true, 'dist/eptsim.steps.wasm');
}

// --- The scenarios -----------------------------------------------------------------------------------------------

/** The files of scenarios/ as a module: src/ reads no YAML, so that the API needs no library and no file system. */
async function buildScenarios(): Promise<void> {
  const entries = filesUnder('scenarios').map((file) => {
    const scenario = parseYaml(readFileSync(at(file), 'utf8'));
    const name = /([^/]+)\.(yaml|json)$/.exec(file)?.[1];
    if (name === undefined) throw new BuildError(`${file}: a scenario is a .yaml or .json file`);
    if (scenario?.name !== name) throw new BuildError(`${file}: the scenario must have the file's name, '${name}'`);
    return [name, scenario];
  });
  const code = [
    '// Built from scenarios/ by scripts/build.ts; change the files there.',
    "import type { Scenario } from '../scenario.ts';",
    `export const scenarios: Record<string, Scenario> = ${JSON.stringify(Object.fromEntries(entries), undefined, 2)};`,
  ];
  writeWhole('src/scenario/built-in.ts', `${code.join('\n')}\n`);
}

// --- The API -----------------------------------------------------------------------------------------------------

/** The package has no dependencies, and a browser resolves no package names. */
function checkImportsNoPackage(file: string): void {
  const code = readFileSync(at(file), 'utf8');
  for (const [, specifier] of code.matchAll(/(?:\bfrom|\bimport\s*\(|^import)\s*['"]([^'"]+)['"]/gm)) {
    if (!/^(\.|node:)/.test(specifier!))
      throw new BuildError(`${file} imports '${specifier}'; only src/cli may use packages`);
  }
}

/** Where the API is as one file. load.ts names the engine's files as seen from its own folder, so it is the same one. */
const bundle = 'engine/eptsim.js';

/** Makes the modules in `folder` one: to find thirty files takes Node longer than to compile the engine. */
async function bundleApi(folder: string): Promise<void> {
  const modules = filesUnder(folder).filter((name) => name.endsWith('.js'));
  const { outputFiles } = await esbuild.build({
    absWorkingDir: root,
    entryPoints: [`${folder}/index.js`],
    bundle: true,
    write: false,
    platform: 'neutral',
    target: 'es2022',
    format: 'esm',
    charset: 'utf8',
    logLevel: 'error',
  });
  for (const file of modules) rmSync(at(file));
  writeWhole(`${folder}/${bundle}`, outputFiles[0]!.contents);
  writeWhole(`${folder}/index.js`, `export * from './${bundle}';\n`);
}

async function buildApi(): Promise<void> {
  rmSync(at('build/api'), { recursive: true, force: true });
  const tsc = spawnSync(
    process.execPath,
    ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json', '--outDir', 'build/api', '--noEmitOnError'],
    { cwd: root, encoding: 'utf8' },
  );
  if (tsc.status !== 0) throw new BuildError(`tsc -p tsconfig.build.json:\n${tsc.stdout}${tsc.stderr}`);
  // tsc writes './vm.js' for './vm.ts' into the JavaScript only.
  for (const file of filesUnder('build/api').filter((name) => name.endsWith('.d.ts'))) {
    const types = readFileSync(at(file), 'utf8');
    writeFileSync(at(file), types.replaceAll(/((?:from|import)\s*\(?\s*['"]\.[^'"]*)\.ts(['"])/g, '$1.js$2'));
  }
  for (const file of filesUnder('build/api').filter((name) => name.endsWith('.js'))) checkImportsNoPackage(file);
  await bundleApi('build/api');
  // dist/ keeps the engine and the CLI; what the API part left there before goes.
  mkdirSync(at('dist'), { recursive: true });
  for (const name of readdirSync(at('dist'))) {
    if (name !== 'cli' && !/\.wasm(\.tmp)?$/.test(name)) rmSync(at('dist', name), { recursive: true, force: true });
  }
  for (const name of readdirSync(at('build/api'))) renameSync(at('build/api', name), at('dist', name));
}

// --- The CLI -----------------------------------------------------------------------------------------------------

/** The licence texts of `packages`, each under its name and version. */
function licencesOf(packages: string[]): string {
  const texts = packages.map((name) => {
    const folder = at('node_modules', name);
    const { version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    const file = readdirSync(folder).find((entry) => /^(licen[cs]e|copying)([.-]|$)/i.test(entry));
    if (file === undefined) throw new BuildError(`${name} is bundled but has no licence file`);
    return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), 'utf8').trim()}\n`;
  });
  return texts.join(`\n${'-'.repeat(80)}\n\n`);
}

async function buildCli(): Promise<void> {
  const { version } = JSON.parse(readFileSync(at('package.json'), 'utf8'));
  const result = await esbuild.build({
    absWorkingDir: root,
    entryPoints: ['src/cli/main.ts'],
    outfile: 'build/cli/main.js',
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'esm',
    metafile: true,
    logLevel: 'error',
    define: { 'process.env.EPTSIM_VERSION': JSON.stringify(version) },
    // Libraries written as CommonJS call require() for Node's own modules.
    banner: {
      js: [
        '#!/usr/bin/env node',
        "import { createRequire as createRequireOfBundle } from 'node:module';",
        'const require = createRequireOfBundle(import.meta.url);',
      ].join('\n'),
    },
    plugins: [
      {
        // The CLI uses the public API only, and the package holds that once.
        name: 'api-stays-outside',
        setup(build) {
          build.onResolve({ filter: /(^|\/)index\.[jt]s$/ }, ({ path, resolveDir }) => {
            const target = relative(root, join(resolveDir, path)).replace(/\.[jt]s$/, '');
            return target === join('src', 'index') ? { path: '../index.js', external: true } : undefined;
          });
        },
      },
    ],
  });
  const code = readFileSync(at('build/cli/main.js'), 'utf8').replace(/^(#!.*\n)(#!.*\n)/, '$1');
  const packages = new Set<string>();
  for (const input of Object.keys(result.metafile.inputs)) {
    const match = /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input.slice(input.lastIndexOf('node_modules/')));
    if (match) packages.add(match[1]!);
  }
  writeWhole('dist/cli/main.js', code);
  chmodSync(at('dist/cli/main.js'), 0o755);
  writeWhole('dist/cli/THIRD_PARTY_LICENSES.txt', licencesOf([...packages].sort()));
}

// --- All of it ---------------------------------------------------------------------------------------------------

async function buildPart(name: PartName, force: boolean): Promise<void> {
  const { inputs, outputs, build } = parts[name];
  const stampFile = at(`build/${name}.stamp`);
  const stamp = hashOf(inputs);
  const fresh = existsSync(stampFile) && readFileSync(stampFile, 'utf8') === stamp;
  if (!force && fresh && outputs.every((file) => existsSync(at(file)))) return;
  const start = performance.now();
  rmSync(stampFile, { force: true });
  await build();
  writeFileSync(stampFile, stamp);
  process.stderr.write(`built ${name} in ${((performance.now() - start) / 1000).toFixed(1)} s\n`);
}

const wanted = process.argv.slice(2).filter((argument) => argument !== '--force');
const unknown = wanted.filter((name) => !(name in parts));
if (unknown.length > 0) {
  process.stderr.write(`build: no part named ${unknown.join(', ')}; there are ${Object.keys(parts).join(', ')}\n`);
  process.exit(2);
}
try {
  await withLock(async () => {
    for (const name of Object.keys(parts) as PartName[]) {
      if (['api', 'cli'].includes(name) && !existsSync(at('src/index.ts'))) continue;
      if (name === 'cli' && !existsSync(at('src/cli/main.ts'))) continue;
      if (wanted.length === 0 || wanted.includes(name)) await buildPart(name, process.argv.includes('--force'));
    }
  });
} catch (error) {
  if (!(error instanceof BuildError)) throw error;
  process.stderr.write(`${error.message.trimEnd()}\n`);
  process.exitCode = 1;
}
