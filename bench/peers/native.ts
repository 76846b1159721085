// Layout A in C: compiles native.c, runs it as a child process and talks to it a line at a time. Its times are its own.

import { type ChildProcessByStdio, spawn, spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { cpus } from 'node:os';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { type BenchContext, median } from '../rows.ts';
import { DENSITIES, type Guest, LEAVES, pagesOf, SEED } from '../workloads.ts';
import { isBuilt, keyed } from './built.ts';
import { ALTERNATE, type Calls, type Contender, type Outcome, type Read, WALKS, type Walk } from './contender.ts';

const FLAGS = ['-O3', '-march=native', '-Wall', '-Wextra', '-Werror'];

/** Compiles native.c, unless that is done. Returns the program, or why there is none: no gcc, or one that cannot. */
export function compileNative(): { program: string } | { skipped: string } {
  const gcc = (...given: string[]) => spawnSync('gcc', given, { encoding: 'utf8' });
  const version = gcc('--version');
  if (version.status !== 0) return { skipped: 'no gcc here: the native rows are left out' };
  mkdirSync('build/bench', { recursive: true });
  // Another processor or another gcc makes another program: -march=native.
  const program = keyed('build/bench/native', [cpus()[0]?.model ?? 'unknown', version.stdout]);
  if (isBuilt(program, ['bench/peers/native.c', 'bench/peers/native.ts'])) return { program };
  const { status, stderr } = gcc(...FLAGS, '-o', program, 'bench/peers/native.c');
  if (status === 0) return { program };
  const lines = stderr.split('\n').filter((line) => line !== '');
  const reason = lines.find((line) => line.includes('error')) ?? lines[0] ?? `it ended with ${status}`;
  return { skipped: `gcc cannot compile native.c here, the native rows are left out: ${reason}` };
}

/** One process; both walks work on the same tables. */
export class NativeProcess {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #waiting: ((line: string) => void)[] = [];

  constructor(program: string) {
    this.#child = spawn(program, [], { stdio: ['pipe', 'pipe', 'inherit'] });
    const lines = createInterface({ input: this.#child.stdout });
    lines.on('line', (line) => this.#waiting.shift()?.(line));
    lines.on('close', () => {
      for (const give of this.#waiting.splice(0)) give('error: the process ended');
    });
  }

  async ask(command: string, binary?: Uint8Array): Promise<number[]> {
    const answer = new Promise<string>((resolve) => this.#waiting.push(resolve));
    this.#child.stdin.write(`${command}\n`);
    if (binary !== undefined) this.#child.stdin.write(binary);
    const line = await answer;
    if (line.startsWith('error')) throw new Error(`native.c: ${command}: ${line}`);
    return line.replace(/^ok ?/, '').split(' ').filter(Boolean).map(Number);
  }

  /** Bytes a second that a loop reads, changes and writes back, here and now. */
  async bandwidth(bytes: number): Promise<number> {
    return bytes / (median(await this.ask(`bandwidth ${bytes}`)) / 1e9);
  }

  quit(): void {
    this.#child.stdin.end('quit\n');
  }
}

const outcome = ([ns, leafs, , , looked]: number[]): Outcome => ({ ns, leafs, looked });

export class Native implements Contender {
  readonly name: string;
  readonly #process: NativeProcess;
  readonly #kind: number;
  #guest: Guest | undefined;

  constructor(process: NativeProcess, kind: 'tdp_iter' | 'nested') {
    this.name = `native ${kind}`;
    this.#process = process;
    this.#kind = kind === 'tdp_iter' ? 0 : 1;
  }
  takes(): boolean {
    return true;
  }
  async build(guest: Guest): Promise<void> {
    this.#guest = guest;
    await this.#process.ask(`build ${pagesOf(guest)} ${LEAVES[guest.leaves]}`);
  }
  async fill(walk: Walk): Promise<void> {
    await this.#process.ask(`fill ${DENSITIES.indexOf(this.#guest!.density)} ${SEED}`);
    if (walk === 'map') await this.#process.ask('whole 1 0');
  }
  async use(gfns: Uint32Array): Promise<void> {
    await this.#process.ask(`gfns ${gfns.length}`, new Uint8Array(gfns.buffer, gfns.byteOffset, gfns.byteLength));
  }
  async whole(walk: Walk): Promise<Outcome> {
    return outcome(await this.#process.ask(`whole ${this.#kind} ${WALKS.indexOf(walk)}`));
  }
  async ranges(walk: Walk, npages: number): Promise<Outcome> {
    return outcome(await this.#process.ask(`ranges ${this.#kind} ${WALKS.indexOf(walk)} ${npages}`));
  }
  async look(): Promise<number> {
    return (await this.#process.ask('look'))[0];
  }
  /** Zaps `npages` from each gfn in use page by page, then maps them page by page. */
  async calls(npages: number): Promise<Calls> {
    const [zapNs, mapNs, leafs] = await this.#process.ask(`calls ${this.#kind} ${npages}`);
    return { zapNs, mapNs, leafs };
  }
  /** Maps every second page, then zaps the guest in pieces of `npages`; a record for each is written and read. */
  async trace(npages: number): Promise<Read & { ns: number }> {
    await this.#process.ask(`fill ${ALTERNATE} ${SEED}`);
    const [ns, changes, sum] = await this.#process.ask(`trace ${this.#kind} ${npages}`);
    return { ns, changes, sum: sum | 0 };
  }
  async close(): Promise<void> {}
}

/** The process, for the caller to quit, and both peers on it; none, which is said, where native.c was not compiled. */
export function startNative({ native, say }: Pick<BenchContext, 'native' | 'say'>): {
  process?: NativeProcess;
  peers: Native[];
} {
  if ('skipped' in native) {
    say(native.skipped);
    return { peers: [] };
  }
  const process = new NativeProcess(native.program);
  return { process, peers: [new Native(process, 'tdp_iter'), new Native(process, 'nested')] };
}
