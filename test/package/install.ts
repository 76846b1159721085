// Packs this tree as npm would publish it and installs the tarball into an empty folder.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface Installed {
  /** The folder of the consumer, with the package in its node_modules/. */
  folder: string;
  /** The paths in the tarball. */
  files: string[];
  remove(): void;
}

/** Runs a command and returns its stdout; throws with all it said if it fails. */
export function run(command: string, args: string[], cwd: string): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    // The consumer is another project: what npm set for this one must not reach it.
    env: Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(npm_|NODE_|VITEST|EPTSIM_)/.test(name))),
  });
  if (error) throw error;
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} exited with ${status}:\n${stdout}${stderr}`);
  return stdout;
}

export function packAndInstall(): Installed {
  const root = process.cwd();
  if (process.env.EPTSIM_NO_BUILD !== '1') run(process.execPath, ['scripts/run.mjs', 'build'], root);
  const folder = mkdtempSync(join(tmpdir(), 'eptsim-package-'));
  const [packed] = JSON.parse(
    run('npm', ['pack', '--ignore-scripts', '--json', '--pack-destination', folder], root),
  ) as { filename: string; files: { path: string }[] }[];
  if (packed === undefined) throw new Error('npm pack named no tarball');
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'consumer', private: true, type: 'module' }));
  run('npm', ['install', '--offline', '--no-audit', '--no-fund', `./${packed.filename}`], folder);
  return {
    folder,
    files: packed.files.map(({ path }) => path).sort(),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
