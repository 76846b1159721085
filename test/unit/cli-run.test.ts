// The built command, as a shell calls it: what goes where, and how it ends.

import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const main = join(process.cwd(), 'dist/cli/main.js');
let folder: string;

beforeAll(() => {
  const { status, stderr } = spawnSync(process.execPath, ['scripts/run.mjs', 'build'], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  folder = mkdtempSync(join(tmpdir(), 'eptsim-cli-'));
}, 300_000);
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function eptsim(args: string[], options: { env?: Record<string, string>; input?: string } = {}) {
  const { NO_COLOR: _no, FORCE_COLOR: _force, ...env } = process.env;
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...args], {
    cwd: folder,
    encoding: 'utf8',
    env: { ...env, ...options.env },
    input: options.input ?? '',
  });
  return { status, stdout, stderr };
}

function file(name: string, text: string): string {
  writeFileSync(join(folder, name), text);
  return name;
}

const SMALL = `name: small
parameters:
  pages: { default: 4, min: 1, max: 16 }
vm: { memory: 1MiB }
memory:
  - { slot: 0, gpa: 0, size: 1MiB }
steps:
  - repeat: pages
    index: page
    access: { gpa: page * 4KiB, kind: write }
  - name: unmap
    measure: true
    unmapGfnRange: { slot: 0, start: 0, end: pages }
    returns: true
    expect: { leafs_zapped_direct_4k: pages }
`;
const FAST = ['run', 'convert-already-private', '--set', 'size=5GiB', '--set', 'convertSize=4MiB'];

describe('data goes to standard output, all else to standard error', () => {
  test('run prints tables, and the time apart', () => {
    const { status, stdout, stderr } = eptsim(FAST);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^convert +tdx-filtered +tdx-unfiltered +snp +sw-protected$/m);
    expect(stdout).toMatch(/^private pages lost +0 +512 +0 +0$/m);
    expect(stdout).not.toContain(String.fromCharCode(27));
    expect(stderr).toMatch(/^simulated in /);
  });

  // 1 GiB is 262,144 pages: each is blocked, tracked, kicked for, removed and written back by itself.
  test('run td-to-shared of 1 GiB with 8 vCPUs inside counts 262,144 of each call', () => {
    const args = ['run', 'td-to-shared', '--set', 'size=1GiB', '--set', 'vcpus=8', '--json'];
    const { status, stdout } = eptsim(args);
    expect(status).toBe(0);
    const [{ counters }] = JSON.parse(stdout).variants;
    const calls = ['TDH.MEM.RANGE.BLOCK', 'TDH.MEM.TRACK', 'TDH.MEM.PAGE.REMOVE', 'TDH.PHYMEM.PAGE.WBINVD'];
    expect([...calls, 'kicks'].map((name) => counters[name])).toEqual([1, 2, 3, 4, 5].map(() => 262_144));
  });
  test('run --json prints one object with the same counts, and no time', () => {
    const { status, stdout, stderr } = eptsim([...FAST, '--json']);
    expect(status).toBe(0);
    const { scenario, variants } = JSON.parse(stdout);
    expect(scenario).toBe('convert-already-private');
    expect(variants.map((variant: { name: string }) => variant.name)).toEqual([
      'tdx-filtered',
      'tdx-unfiltered',
      'snp',
      'sw-protected',
    ]);
    expect(variants[1].losses.privatePagesLost).toBe(512);
    expect(variants[1].counters.leafs_zapped_mirror_4k).toBe(512);
    expect(variants[1].steps.map((step: { name: string }) => step.name)).toContain('destroy');
    expect(stdout).not.toMatch(/"?(time|milliseconds|duration)/i);
    expect(stderr).toMatch(/^simulated in /);
  });

  test('--version, --help and list', () => {
    const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
    expect(eptsim(['--version'])).toEqual({ status: 0, stdout: `${version}\n`, stderr: '' });
    const help = eptsim(['--help']);
    expect(help).toMatchObject({ status: 0, stderr: '' });
    expect(help.stdout).toMatch(/run[\s\S]*list[\s\S]*Exit codes/);
    const list = eptsim(['list']);
    expect(list).toMatchObject({ status: 0, stderr: '' });
    expect(list.stdout).toMatch(/^convert-already-private$[\s\S]*--set privateShare=0.5/m);
    expect(JSON.parse(eptsim(['list', '--json']).stdout).scenarios[0].variants).toHaveLength(4);
  });
});

describe('a scenario of ones own', () => {
  test('runs from a file, with its parameters set', () => {
    const { status, stdout } = eptsim(['run', file('small.yaml', SMALL), '--set', 'pages=7']);
    expect(status).toBe(0);
    expect(stdout).toMatch(/^leaves zapped, direct 4K +7$/m);
  });

  test('is not blamed for a parameter set wrong', () => {
    const { status, stderr } = eptsim(['run', file('small.yaml', SMALL), '--set', 'pages=17']);
    expect(stderr).toBe("eptsim: parameter pages: '17' is too large; it must be at least 1, at most 16\n");
    expect(status).toBe(2);
  });

  test('runs from standard input', () => {
    expect(eptsim(['run', '-', '--json'], { input: SMALL })).toMatchObject({ status: 0 });
  });

  test('ends with 1 and says where an expectation failed', () => {
    const wrong = SMALL.replace('leafs_zapped_direct_4k: pages', 'leafs_zapped_direct_4k: 5');
    const { status, stdout, stderr } = eptsim(['run', file('wrong.yaml', wrong), '--json']);
    expect(status).toBe(1);
    expect(JSON.parse(stdout).failures).toHaveLength(1);
    expect(stderr).toMatch(/wrong\.yaml:15:39: small, unmap: leafs_zapped_direct_4k is 4, expected 5/);
  });

  test.each<[string, string, RegExp]>([
    [
      'a field misspelt',
      SMALL.replace('start:', 'strat:'),
      /^eptsim: f\.yaml:13:31: .*'strat'; did you mean start\?\n$/,
    ],
    [
      'a method misspelt',
      SMALL.replace('access:', 'acess:'),
      /^eptsim: f\.yaml:10:5: .*'acess'; did you mean access\?/,
    ],
    [
      'a name misspelt',
      SMALL.replace('page * 4KiB', 'pgae * 4KiB'),
      /^eptsim: f\.yaml:10:20: gpa: unknown name 'pgae'; did you mean page/,
    ],
    ['what KVM refuses', SMALL.replace('gpa: 0, size', 'gpa: 100, size'), /^eptsim: f\.yaml:6:5: .*EINVAL/],
    [
      'a counter that is none',
      SMALL.replace('leafs_zapped_direct_4k', 'leafs_zaped_direct_4k'),
      /^eptsim: f\.yaml:15:15: .*did you mean leafs_zapped_direct_4k/,
    ],
    ['a truncated text', SMALL.slice(0, 70), /^eptsim: f\.yaml:4:6: /],
    ['too many repeats', SMALL.replace('repeat: pages', 'repeat: 1e9'), /^eptsim: f\.yaml:8:13: .*1000000/],
  ])('ends with 2 and line and column for %s', (_, text, message) => {
    const { status, stdout, stderr } = eptsim(['run', file('f.yaml', text)]);
    expect(stderr).toMatch(message);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
  });
});

describe('a wrong call ends with 2 and a helpful line', () => {
  test.each<[string[], RegExp]>([
    [[], /^Usage: eptsim/],
    [['rnu'], /unknown command 'rnu'\n\(Did you mean run\?\)/],
    [['run'], /missing required argument 'file\|name'/],
    [['run', 'convert-alredy-private'], /did you mean convert-already-private\? \(and there is no such file\)/],
    [['run', './nothing.yaml'], /nothing\.yaml: can't be read: there is no such file/],
    [['run', '.'], /can't be read: it is a directory/],
    [['run', 'convert-already-private', '--jsn'], /unknown option '--jsn'\n\(Did you mean --json\?\)/],
    [['run', 'convert-already-private', '--set', 'size'], /--set takes name=value, not 'size'/],
    [
      ['run', 'convert-already-private', '--set', 'sise=1GiB'],
      /did you mean size\? \(its parameters are size, convertSize/,
    ],
    [['run', 'convert-already-private', '--set', 'size=1PiB'], /'1PiB' is too large; it must be .*at most 7TiB/],
    [['run', 'convert-already-private', '--set', 'size=8GiB', '--set', 'size=9GiB'], /--set gives size twice/],
    [['run', 'convert-already-private', 'again'], /too many arguments/],
  ])('%j', (args, message) => {
    const { status, stdout, stderr } = eptsim(args);
    expect(stderr).toMatch(message);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
  });
});

describe('colour', () => {
  const ESC = String.fromCharCode(27);
  test('is for terminals, and for whoever forces it', () => {
    expect(eptsim(FAST).stdout).not.toContain(ESC);
    expect(eptsim(FAST, { env: { FORCE_COLOR: '1' } }).stdout).toContain(ESC);
    expect(eptsim(FAST, { env: { FORCE_COLOR: '1', NO_COLOR: '1' } }).stdout).not.toContain(ESC);
  });
});

test('a reader that stops early ends the command without a word', async () => {
  const child = spawn(process.execPath, [main, ...FAST, '--json'], { stdio: ['ignore', 'pipe', 'pipe'] });
  child.stdout.destroy();
  let stderr = '';
  child.stderr.on('data', (chunk) => {
    stderr += chunk;
  });
  const status = await new Promise((resolve) => child.on('close', resolve));
  expect(stderr).not.toMatch(/EPIPE|Error|at /);
  expect(status).toBe(0);
});
