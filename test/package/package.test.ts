// The package as a user gets it: packed, installed into an empty folder, used from there.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Installed, packAndInstall, run } from './install.ts';
import { type Server, serve } from './serve.ts';

/** What the start scenario must report at its default setting: leaves zapped by the conversion, and the losses. */
const expectedByVariant: Record<string, { leafsZapped: number; privatePagesLost: number }> = {
  'tdx-filtered': { leafsZapped: 131_072, privatePagesLost: 0 },
  'tdx-unfiltered': { leafsZapped: 262_144, privatePagesLost: 131_072 },
  snp: { leafsZapped: 0, privatePagesLost: 0 },
  'sw-protected': { leafsZapped: 262_144, privatePagesLost: 0 },
};

interface Result {
  scenario: string;
  variants: { name: string; counters: Record<string, number>; losses: Record<string, number> }[];
}

function expectStartResult(result: Result): void {
  expect(result.scenario).toBe('convert-already-private');
  const found = Object.fromEntries(
    result.variants.map(({ name, counters, losses }) => {
      const leafsZapped = Object.entries(counters)
        .filter(([counter]) => /^leafs_zapped_(direct|mirror)_(4k|2m|1g)$/.test(counter))
        .reduce((sum, [, count]) => sum + count, 0);
      return [name, { leafsZapped, privatePagesLost: losses.privatePagesLost }];
    }),
  );
  expect(found).toEqual(expectedByVariant);
}

/** The scenario in a program that reaches the package by `specifier`: its name in Node, its address in a browser. */
const startProgram = (specifier: string) => `
import { runScenario, scenarioNamed } from '${specifier}';
export async function start() {
  const { scenario, variants } = await runScenario(scenarioNamed('convert-already-private'));
  return { scenario, variants: variants.map(({ name, counters, losses }) => ({ name, counters, losses })) };
}
`;

let installed: Installed;

beforeAll(() => {
  installed = packAndInstall();
});
afterAll(() => installed?.remove());

describe('the tarball', () => {
  test('holds the built files, the scenarios and the documents, and nothing else', () => {
    const allowed = /^(dist\/.*\.(js|d\.ts|wasm)|dist\/.*THIRD_PARTY_LICENSES\.txt|scenarios\/[\w-]+\.(yaml|json))$/;
    const documents = ['CHANGELOG.md', 'LICENSE', 'README.md', 'package.json'];
    expect(installed.files.filter((file) => !allowed.test(file) && !documents.includes(file))).toEqual([]);
    for (const file of [
      ...documents,
      'dist/index.js',
      'dist/index.d.ts',
      'dist/eptsim.wasm',
      'dist/eptsim.steps.wasm',
      'dist/cli/main.js',
      'dist/cli/THIRD_PARTY_LICENSES.txt',
      'scenarios/convert-already-private.yaml',
    ]) {
      expect(installed.files).toContain(file);
    }
  });

  test('needs no other package', () => {
    const lock = JSON.parse(readFileSync(join(installed.folder, 'package-lock.json'), 'utf8'));
    expect(Object.keys(lock.packages).sort()).toEqual(['', 'node_modules/eptsim']);
  });

  test('names no package that it does not hold', () => {
    for (const file of installed.files.filter((name) => name.endsWith('.js'))) {
      const code = readFileSync(join(installed.folder, 'node_modules/eptsim', file), 'utf8');
      const imports = /^\s*(?:import\s*|(?:import\b|export\b|\})[^'"\n]*\bfrom\s*)['"]([^'"\n]+)['"]/gm;
      const specifiers = [...code.matchAll(imports)].map((match) => match[1]!);
      const outside = specifiers.filter((name) => !/^(\.|node:)/.test(name));
      expect(outside, file).toEqual([]);
    }
  });
});

describe('in Node', () => {
  test('the package imports, simulates, and its engine can be reached as a file', () => {
    const program = join(installed.folder, 'program.js');
    writeFileSync(
      program,
      `
      import { readFileSync } from 'node:fs';
      import { fileURLToPath } from 'node:url';
      import { createVm, createVmSync } from 'eptsim';
      const bytes = readFileSync(fileURLToPath(import.meta.resolve('eptsim/wasm')));
      const memory = 0x200000;
      const zapped = (vm) => {
        vm.host.mmap({ kind: 'anon4k', hva: 0x7f0000000000, length: memory });
        vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: memory, userspaceAddr: 0x7f0000000000 });
        vm.vcpus[0].access({ gpa: 0x1000, kind: 'write' });
        vm.unmapGfnRange({ slot: 0, start: 0, end: 512 });
        return vm.stats().leafs_zapped_direct_4k;
      };
      const pieces = (vm) => {
        zapped(vm);
        return [...vm.steps({ budget: 1 }, () => vm.unmapGfnRange({ slot: 0, start: 0, end: 512 }))].length;
      };
      console.log(JSON.stringify([
        zapped(await createVm({ memory })),
        zapped(createVmSync({ memory })),
        zapped(await createVm({ memory, debug: true })),
        zapped(await createVm({ memory, wasm: bytes })),
        zapped(await createVm({ memory, wasm: new WebAssembly.Module(bytes) })),
        pieces(createVmSync({ memory })) > 500,
      ]));
      `,
    );
    expect(JSON.parse(run(process.execPath, [program], installed.folder))).toEqual([1, 1, 1, 1, 1, true]);
  });

  test("the README's examples run and print what their comments say", () => {
    const readme = readFileSync('README.md', 'utf8');
    const examples = [...readme.matchAll(/^```js\n([\s\S]*?)^```/gm)].map((match) => match[1]!);
    expect(examples.length).toBeGreaterThan(0);
    for (const [index, example] of examples.entries()) {
      const program = join(installed.folder, `readme-${index}.js`);
      writeFileSync(program, example);
      const printed = [...example.matchAll(/console\.log\(.*\);? \/\/ (.*)$/gm)].map((match) => `${match[1]}\n`);
      expect(run(process.execPath, [program], installed.folder)).toBe(printed.join(''));
    }
  });

  test('the start scenario runs through the API', () => {
    const program = join(installed.folder, 'start-in-node.js');
    writeFileSync(program, `${startProgram('eptsim')}\nconsole.log(JSON.stringify(await start()));\n`);
    expectStartResult(JSON.parse(run(process.execPath, [program], installed.folder)));
  });

  test('the command tells its version and runs the start scenario', () => {
    const command = join(installed.folder, 'node_modules/.bin/eptsim');
    const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
    expect(run(command, ['--version'], installed.folder).trim()).toBe(version);
    expect(run(command, ['--help'], installed.folder)).toMatch(/run[\s\S]*conform/);
    expectStartResult(JSON.parse(run(command, ['run', 'convert-already-private', '--json'], installed.folder)));
  });

  test.each([
    { name: 'nodenext', options: { module: 'nodenext', moduleResolution: 'nodenext' } },
    { name: 'bundler', options: { module: 'esnext', moduleResolution: 'bundler' } },
  ])(
    'a consumer type-checks against the shipped types, without any other (moduleResolution $name)',
    ({ name, options }) => {
      const folder = join(installed.folder, `types-${name}`);
      mkdirSync(folder);
      writeFileSync(
        join(folder, 'consumer.ts'),
        `
      import { createVm, type CreateVmOptions, KvmError, type KvmGfnRange, type TraceEvent, type Vm } from 'eptsim';
      const options: CreateVmOptions = { type: 'tdx', filterForm: 'rfc-v4', kernel: 'linux-6.12', memory: 1n << 32n };
      const vm: Vm = await createVm(options);
      const range: KvmGfnRange = { slot: 0, start: 0, end: 512, onlyShared: true };
      const flush: boolean = vm.unmapGfnRange(range);
      const names: TraceEvent['name'][] = vm.trace().map((event) => event.name);
      const code: string | undefined = (() => {
        try {
          vm.setMemoryAttributes({ address: 0, size: 4096n, attributes: 8 });
        } catch (error) {
          if (error instanceof KvmError) return error.code;
        }
        return undefined;
      })();
      // @ts-expect-error: not a type of VM.
      createVm({ type: 'sgx', memory: 4096 });
      // @ts-expect-error: the capacity is required.
      createVm({});
      export { code, flush, names };
      `,
      );
      writeFileSync(
        join(folder, 'tsconfig.json'),
        JSON.stringify({
          compilerOptions: {
            ...options,
            target: 'es2022',
            lib: ['es2022', 'dom'],
            types: [],
            strict: true,
            exactOptionalPropertyTypes: true,
            skipLibCheck: false,
            noEmit: true,
          },
          include: ['consumer.ts'],
        }),
      );
      run(process.execPath, [join(process.cwd(), 'node_modules/typescript/bin/tsc'), '-p', folder], installed.folder);
    },
  );
});

const chromiumPath = process.env.EPTSIM_CHROMIUM ?? '/usr/bin/chromium';
const hasChromium = existsSync(chromiumPath);
if (!hasChromium) console.warn(`skipped: the tests in Chromium, which is not at ${chromiumPath}`);

describe.skipIf(!hasChromium)('in Chromium', () => {
  let server: Server;
  let browser: Browser;
  let profile: string;
  let page: Page;
  const complaints: string[] = [];

  beforeAll(async () => {
    writeFileSync(join(installed.folder, 'start.js'), startProgram('/node_modules/eptsim/dist/index.js'));
    writeFileSync(
      join(installed.folder, 'worker.js'),
      `import { start } from '/start.js';
      start().then((result) => postMessage({ result }), (error) => postMessage({ error: String(error?.stack ?? error) }));`,
    );
    writeFileSync(
      join(installed.folder, 'page.html'),
      '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>eptsim</title>',
    );
    server = await serve(installed.folder);
    profile = mkdtempSync(join(tmpdir(), 'eptsim-chromium-'));
    browser = await chromium.launch({
      executablePath: chromiumPath,
      headless: true,
      args: [
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
        `--disk-cache-dir=${profile}`,
      ],
    });
    page = await browser.newPage();
    page.on('pageerror', (error) => complaints.push(String(error)));
    page.on('console', (message) => {
      if (message.type() === 'error') complaints.push(message.text());
    });
    page.on('requestfailed', (request) => complaints.push(`failed: ${request.url()}`));
    await page.goto(`${server.origin}/page.html`);
  });
  afterAll(async () => {
    await browser?.close();
    await server?.close();
    if (profile) rmSync(profile, { recursive: true, force: true });
  });

  test('the start scenario runs in the page', async () => {
    // A string: vite rewrites import() in a function, which the page then lacks.
    const result: unknown = await page.evaluate("import('/start.js').then(({ start }) => start())");
    expectStartResult(result as Result);
    expect(complaints).toEqual([]);
  });

  test('the start scenario runs in a worker', async () => {
    const message = await page.evaluate(
      () =>
        new Promise<{ result?: unknown; error?: string }>((resolve) => {
          const worker = new Worker('/worker.js', { type: 'module' });
          worker.onmessage = (event) => resolve(event.data);
          worker.onerror = (event) => resolve({ error: event.message || 'the worker did not load' });
        }),
    );
    expect(message.error).toBeUndefined();
    expectStartResult(message.result as Result);
    expect(complaints).toEqual([]);
  });
});
