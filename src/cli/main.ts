// The command `eptsim`. Data goes to standard output, everything else to standard error.
//
// It ends with 0, with 1 if a comparison or an expectation failed, with 2 if the call or its input was wrong.

import { Command, CommanderError } from 'commander';
import { registerConform } from './conform/command.ts';
import { registerList } from './list.ts';
import { ExpectationError, registerRun } from './run.ts';
import { InputError } from './scenario-file.ts';
import { registerSchema } from './schema.ts';

// A reader that has seen enough, such as head, is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') process.stderr.write(`eptsim: can't write the output: ${error.message}\n`);
  process.exit(error.code === 'EPIPE' ? (process.exitCode ?? 0) : 2);
});
process.stderr.on('error', () => {});

const program = new Command('eptsim')
  .description("A simulator of KVM's guest memory: what a range operation zaps, flushes and loses.")
  .version(process.env.EPTSIM_VERSION ?? '0.0.0', '-V, --version', 'print the version')
  .helpOption('-h, --help', 'print this help')
  .showHelpAfterError("(add --help for what the command takes; 'eptsim list' shows the scenarios)")
  .exitOverride()
  .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'eptsim: ')) })
  .addHelpText(
    'after',
    `
Exit codes: 0 done, 1 a comparison or an expectation failed, 2 the call or its input was wrong.`,
  );
registerRun(program);
registerConform(program);
registerList(program);
registerSchema(program);

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else if (error instanceof InputError || error instanceof ExpectationError) {
    process.stderr.write(`eptsim: ${error.message}\n`);
    process.exitCode = error instanceof InputError ? 2 : 1;
  } else {
    process.stderr.write(
      `eptsim: this is a fault of eptsim itself, please report it: ${(error as Error).stack ?? error}\n`,
    );
    process.exitCode = 2;
  }
}
