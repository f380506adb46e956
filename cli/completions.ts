/**
 * `completions`: completion scripts for shells, generated from the commands'
 * tables.
 *
 * The scripts are self-contained: calling this program at each key press would
 * be too slow.
 *
 * @module
 */
import "../drivers/all.ts";
import { listDrivers, loadDriver } from "../core/registry.ts";
import {
  type Command,
  type Commands,
  HELP,
  type Invocation,
  loadCommand,
  PROGRAM_OPTIONS,
} from "./command.ts";
import type { OptionSpec } from "./getopt.ts";
import { CACHE_MODES } from "./images.ts";
import { CommandError, type Program, usageError } from "./program.ts";

/** The command; it completes all commands that `commandsOf` lists. */
export const completions = (
  commandsOf: (program: Program) => Commands,
): Command => ({
  summary: "Print a completion script for a shell",
  operands: "bash|zsh|fish",
  options: [HELP],
  notes: "bash: source <(bdrv completions bash)          in ~/.bashrc\n" +
    "zsh:  source <(bdrv completions zsh)           in ~/.zshrc\n" +
    "fish: bdrv completions fish > ~/.config/fish/completions/bdrv.fish",

  async run(invocation) {
    const shell = operandOf(invocation);
    if (!Object.hasOwn(SHELLS, shell)) {
      throw new CommandError(
        `Unknown shell '${shell}': there are ${Object.keys(SHELLS).join(", ")}`,
      );
    }
    const { program } = invocation;
    const grammar = await describe(program, commandsOf(program));
    program.print(SHELLS[shell](program.name, grammar));
    return 0;
  },
});

function operandOf(invocation: Invocation): string {
  for (const _ of invocation.options()) {
    // There are no options but --help.
  }
  if (invocation.operands.length !== 1) {
    throw usageError("Expecting one shell: bash, zsh or fish");
  }
  return invocation.operands[0];
}

/** A word to complete, and its meaning. */
interface Word {
  readonly text: string;
  readonly help: string;
}

/** The values of an argument: certain words, a file, or anything. */
type Values = readonly string[] | "files" | "anything";

/** An option, as a shell needs it. */
interface OptionWords extends Word {
  readonly values?: Values;
}

/** The grammar of the command line. */
interface Grammar {
  readonly commands: readonly (Word & {
    readonly options: readonly OptionWords[];
    readonly operands: Values;
  })[];
  readonly options: readonly OptionWords[];
}

async function describe(
  program: Program,
  commands: Commands,
): Promise<Grammar> {
  await Promise.all(listDrivers().map(loadDriver));
  const names = commands.map(([name]) => name);
  return {
    commands: await Promise.all(
      commands.map(async ([text, entry]) => {
        const command = await loadCommand(program, entry);
        return {
          text,
          help: entry.summary,
          options: command.options.flatMap(optionWords),
          operands: command.operands === "[COMMAND]"
            ? names
            : valuesOf(command.operands),
        };
      }),
    ),
    options: PROGRAM_OPTIONS.flatMap(optionWords),
  };
}

function optionWords(spec: OptionSpec): OptionWords[] {
  const { short, long, alias, help } = spec;
  const values = spec.argument !== undefined && !spec.optional
    ? valuesOf(spec.argument)
    : undefined;
  return [
    ...[short, alias].filter((letter) => letter !== undefined)
      .map((letter) => ({ text: `-${letter}`, help, values })),
    ...(long ? [{ text: `--${long}`, help, values }] : []),
    // An optional argument is part of the same word.
    ...(spec.optional && long
      ? [{ text: `--${long}=${spec.argument}`, help }]
      : []),
  ];
}

/** The values of the argument that the help calls `argument`. */
function valuesOf(argument: string): Values {
  if (/^\w+(\|\w+)+$/.test(argument)) return argument.split("|");
  if (/FILE|TARGET/.test(argument)) return "files";
  const known = KNOWN_VALUES[argument];
  return known ? known() : "anything";
}

const KNOWN_VALUES: { readonly [argument: string]: () => string[] } = {
  // Formats of files; `quorum` is not one.
  FMT: () =>
    listDrivers().filter(({ probe }) => probe !== undefined)
      .map(({ name }) => name),
  CACHE: () => [...CACHE_MODES],
  "NAME=VALUE,…": () => {
    const tables = listDrivers().map(({ createOptions }) => createOptions);
    const names = Object.keys(Object.assign({}, ...tables));
    return ["help", ...names.map((name) => `${name}=`)];
  },
};

const SHELLS: {
  readonly [shell: string]: (name: string, grammar: Grammar) => string;
} = { bash, zsh, fish };

/** Text as one word of a shell. */
function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function textsOf(words: readonly Word[]): string {
  return words.map(({ text }) => text).join(" ");
}

/** Options grouped by the values of their argument. */
function byValues(
  options: readonly OptionWords[],
): [pattern: string, values: Values][] {
  const groups = new Map<string, [string[], Values]>();
  for (const { text, values } of options) {
    if (values === undefined) continue;
    const group = groups.get(String(values));
    if (group) group[0].push(text);
    else groups.set(String(values), [[text], values]);
  }
  return [...groups.values()].map(([texts, values]) => [
    texts.join("|"),
    values,
  ]);
}

function bash(name: string, { commands, options }: Grammar): string {
  const offer = (values: Values) =>
    values === "anything"
      ? "COMPREPLY=()"
      : values === "files"
      ? "_bdrv_files"
      : `_bdrv_words ${quoted(values.join(" "))}`;
  const cases = commands.map((command) => {
    const previous = byValues(command.options).map(([pattern, values]) =>
      `        ${pattern}) ${offer(values)}; return ;;\n`
    );
    return `    ${command.text})
      case $previous in
${previous.join("")}      esac
      if [[ $current == -* ]]; then
        _bdrv_words ${quoted(textsOf(command.options))}
      else
        ${offer(command.operands)}
      fi ;;
`;
  });
  return `# Completes command lines of ${name} in bash.
_bdrv_files() {
  compopt -o filenames 2>/dev/null
  local IFS=$'\\n'
  COMPREPLY=($(compgen -f -- "$current"))
}

_bdrv_words() {
  # What ends with "=" goes on.
  [[ $1 == *=* ]] && compopt -o nospace 2>/dev/null
  COMPREPLY=($(compgen -W "$1" -- "$current"))
}

_bdrv() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]}
  # bash makes a word of its own of the "=" in --option=value.
  if [[ $current == = ]]; then
    current=
  elif [[ $previous == = ]]; then
    previous=\${COMP_WORDS[COMP_CWORD-2]}
  fi
  if ((COMP_CWORD == 1)); then
    _bdrv_words ${quoted(`${textsOf(commands)} ${textsOf(options)}`)}
    return
  fi
  case \${COMP_WORDS[1]} in
${cases.join("")}  esac
}

complete -F _bdrv ${name}
`;
}

function zsh(name: string, { commands, options }: Grammar): string {
  // In zsh's notation, brackets end the help, and colons the name.
  const plain = (text: string) => text.replace(/[[\]:\\]/g, "\\$&");
  const offer = (values: Values) =>
    values === "anything"
      ? "value: "
      : values === "files"
      ? "file:_files"
      : values.some((value) => value.endsWith("="))
      ? `value:_values -s , -S = value ${
        values.map((value) => value.replace(/=$/, "")).join(" ")
      }`
      : `value:(${values.join(" ")})`;
  const specOf = ({ text, help, values }: OptionWords) =>
    quoted(
      `*${text}[${plain(help)}]` + (values ? `:${offer(values)}` : ""),
    );
  const cases = commands.map((command) =>
    `    ${command.text})
      _arguments -s ${command.options.map(specOf).join(" \\\n        ")} \\
        ${quoted(`*:${offer(command.operands)}`)} ;;
`
  );
  const described = [...commands, ...options].map(({ text, help }) =>
    quoted(`${plain(text)}:${plain(help)}`)
  );
  return `#compdef ${name}
# Completes command lines of ${name} in zsh.
_bdrv() {
  local -a commands=(
    ${described.join("\n    ")}
  )
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  shift words
  ((CURRENT--))
  case $words[1] in
${cases.join("")}  esac
}

if [[ $funcstack[1] == _bdrv ]]; then
  _bdrv "$@"
else
  (($+functions[compdef])) || { autoload -U compinit && compinit -u; }
  compdef _bdrv ${name}
fi
`;
}

function fish(name: string, { commands, options }: Grammar): string {
  const words = ({ text, help, values }: OptionWords) => {
    const dashless = text.replace(/^-+/, "");
    return [
      text.startsWith("--") ? `-l ${quoted(dashless)}` : `-s ${dashless}`,
      `-d ${quoted(help)}`,
      ...(values === undefined
        ? []
        : values === "files"
        ? ["-r", "-F"]
        : values === "anything"
        ? ["-x"]
        : ["-x", "-a", quoted(values.join(" "))]),
    ].join(" ");
  };
  const lines = commands.flatMap((command) => {
    const when = quoted(`__fish_seen_subcommand_from ${command.text}`);
    return [
      `complete -c ${name} -n __fish_use_subcommand -f -a ${command.text}` +
      ` -d ${quoted(command.help)}`,
      ...(command.operands === "files"
        ? [`complete -c ${name} -n ${when} -F`]
        : typeof command.operands === "string"
        ? []
        : [
          `complete -c ${name} -n ${when} -f -a ` +
          quoted(command.operands.join(" ")),
        ]),
      ...command.options.map((option) =>
        `complete -c ${name} -n ${when} ${words(option)}`
      ),
    ];
  });
  return `# Completes command lines of ${name} in fish.
complete -c ${name} -n __fish_use_subcommand -f
${
    options.map((option) =>
      `complete -c ${name} -n __fish_use_subcommand ${words(option)}`
    ).join("\n")
  }
${lines.join("\n")}
`;
}
