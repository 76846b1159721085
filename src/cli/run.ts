// `eptsim run FILE|NAME`: runs a scenario and prints what its variants counted, as a table or as JSON.

import { existsSync } from 'node:fs';
import type { Command } from 'commander';
import {
  checkScenario,
  runScenario,
  type Scenario,
  ScenarioError,
  type ScenarioResult,
  type ScenarioStep,
  scenarioNamed,
  scenarios,
} from '../index.ts';
import { formatDuration, formatResult } from './format.ts';
import { InputError, readScenarioFile, type ScenarioFile } from './scenario-file.ts';

/** An expectation of the scenario did not hold: the command ends with 1. */
export class ExpectationError extends Error {}

const FAULTS_SHOWN = 10;

export function registerRun(program: Command): void {
  program
    .command('run')
    .description('run a scenario: one that comes with eptsim, by its name, or one in a YAML or JSON file')
    .argument('<file|name>', "the scenario; '-' reads a file from standard input")
    .option('-s, --set <name=value>', 'change a parameter of the scenario; can be given again', collect)
    .option('--json', 'print one JSON object instead of tables')
    .addHelpText(
      'after',
      `
Examples:
  eptsim run convert-already-private
  eptsim run convert-already-private --set sharedLeaf=2M --set offset=4KiB
  eptsim run my-scenario.yaml --json

'eptsim list' shows the scenarios that come with eptsim and their parameters.`,
    )
    .action(run);
}

function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}

async function run(name: string, options: { set?: string[]; json?: boolean }): Promise<void> {
  const set = parseSettings(options.set ?? []);
  const { scenario, file } = await chooseScenario(name);
  const start = performance.now();
  const times = new Map<string, number>();
  let last = start;
  let result: ScenarioResult;
  try {
    result = await runScenario(scenario, {
      set,
      onStep: (variant) => {
        const now = performance.now();
        times.set(variant, (times.get(variant) ?? 0) + now - last);
        last = now;
      },
    });
  } catch (error) {
    if (error instanceof ScenarioError) throw new InputError(faultText(error, file));
    throw error;
  }
  if (options.json) process.stdout.write(`${JSON.stringify(result, undefined, 2)}\n`);
  else {
    process.stdout.write(formatResult(result, { ...shownSteps(scenario), width: terminalWidth(), color: hasColor() }));
  }
  const each = [...times].map(([variant, time]) => `${variant} ${formatDuration(time)}`).join(', ');
  process.stderr.write(`simulated in ${formatDuration(performance.now() - start)}: ${each}\n`);
  if (result.failures !== undefined) throw new ExpectationError(failureText(result.failures, file));
}

/** Which steps of the result are shown: the memory section, if there is one, is the first. */
function shownSteps({ memory, steps }: Scenario): { measured?: number; last?: number } {
  const offset = memory === undefined ? 0 : 1;
  const measured = steps.findIndex(({ measure }) => measure === true);
  const last = steps.findIndex(destroys);
  return { ...(measured >= 0 && { measured: measured + offset }), ...(last >= 0 && { last: last + offset }) };
}

function destroys(step: ScenarioStep): boolean {
  return 'destroy' in step || (step.steps ?? []).some(destroys);
}

/** The scenario by built-in name or in a file. A file wins only if its name is none of the built-in ones. */
async function chooseScenario(name: string): Promise<{ scenario: Scenario; file?: ScenarioFile }> {
  if (Object.hasOwn(scenarios, name)) return { scenario: scenarioNamed(name) };
  const isFile = name === '-' || existsSync(name);
  if (!isFile && !/[./\\]/.test(name)) {
    try {
      scenarioNamed(name);
    } catch (error) {
      if (error instanceof ScenarioError) throw new InputError(`${error.message} (and there is no such file)`);
      throw error;
    }
  }
  const file = await readScenarioFile(name);
  const faults = checkScenario(file.scenario);
  if (faults.length > 0) throw new InputError(placedFaults(faults, file));
  return { scenario: file.scenario as Scenario, file };
}

function parseSettings(settings: string[]): Record<string, string> {
  const set = new Map<string, string>();
  for (const setting of settings) {
    const equals = setting.indexOf('=');
    if (equals <= 0) throw new InputError(`--set takes name=value, not '${setting}'`);
    const name = setting.slice(0, equals).trim();
    if (set.has(name)) throw new InputError(`--set gives ${name} twice`);
    set.set(name, setting.slice(equals + 1).trim());
  }
  return Object.fromEntries(set);
}

function faultText(error: ScenarioError, file: ScenarioFile | undefined): string {
  return file === undefined ? error.message : placedFaults(error.faults, file);
}

function placedFaults(faults: ScenarioError['faults'], file: ScenarioFile): string {
  const shown = faults
    .slice(0, FAULTS_SHOWN)
    .map(({ path, atKey, inOptions, message }) => (inOptions ? message : `${file.place(path, atKey)}: ${message}`));
  return [...shown, ...(faults.length > FAULTS_SHOWN ? ['and more'] : [])].join('\n');
}

function failureText(failures: NonNullable<ScenarioResult['failures']>, file: ScenarioFile | undefined): string {
  const lines = failures.map(({ variant, step, path, message }) => {
    const place = file === undefined ? '' : `${file.place(path)}: `;
    return `${place}${variant}, ${step}: ${message}`;
  });
  return [`${failures.length} ${failures.length === 1 ? 'expectation' : 'expectations'} failed`, ...lines].join('\n');
}

function terminalWidth(): number {
  const columns = process.stdout.columns ?? Number(process.env.COLUMNS);
  return Number.isFinite(columns) && columns >= 40 ? columns : 80;
}

function hasColor(): boolean {
  if (process.env.NO_COLOR) return false;
  if (process.env.FORCE_COLOR) return process.env.FORCE_COLOR !== '0';
  return process.stdout.isTTY === true && process.env.TERM !== 'dumb';
}
