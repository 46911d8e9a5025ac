//! Facts and how they are said: joins `assets/corpus/facts` (who relates to whom) with
//! `assets/corpus/tasks` (one small file per kind of question, a row of phrasings per language).
//! A new task is a new file there and its name in `TASKS`. Knows nothing of splits.

use super::lexicon::{Lexicon, Word, rows, tables};
use super::{ENGLISH, Item, LANGUAGES};
use anyhow::{Context, Result, bail, ensure};

const FACTS: &[(&str, &str)] = tables!("facts": "animal" "country" "day" "difference" "month" "opposite" "sum" "thing");
const TASKS: &[(&str, &str)] = tables!("tasks":
    "capital" "country" "continent" "language" "class" "legs" "habitat" "colour" "opposite" "sum" "difference" "day" "month");

/// Column of the phrasing that no fine-tuning row uses; the columns before it are seen.
pub const HELD_PHRASING: usize = 3;
pub const PHRASINGS: [&str; 4] = ["a", "b", "c", "held"];
const TASK_HEADER: [&str; 6] = ["lang", "ask", "ask", "ask", "held", "say"];

/// One true statement, seen from one task.
pub struct Fact {
    pub task: usize,
    /// `capital/eg`: the task and what is asked about.
    pub id: String,
    /// What is held out together: a relation and its inverse share it.
    pub key: String,
    /// Slot letter and word; `x` is asked about, `y` is the answer and comes last.
    pub slots: Vec<(&'static str, usize)>,
}

pub struct Task {
    pub name: &'static str,
    /// The name under which its facts are held out; that of another task for an inverse relation.
    pub key: &'static str,
    pub facts: Vec<Fact>,
    /// Per language, the four questions and then the sentences.
    phrasings: Vec<Vec<&'static str>>,
}

pub struct World {
    pub lexicon: Lexicon,
    pub tasks: Vec<Task>,
}

impl World {
    pub fn load() -> Result<Self> {
        let lexicon = Lexicon::load()?;
        let tasks = TASKS.iter().enumerate().map(|(index, &(name, text))| {
            Task::parse(&lexicon, index, name, text).with_context(|| format!("in assets/corpus/tasks/{name}.tsv"))
        });
        let tasks = tasks.collect::<Result<_>>()?;
        Ok(World { lexicon, tasks })
    }

    pub fn facts(&self) -> impl Iterator<Item = &Fact> {
        self.tasks.iter().flat_map(|task| &task.facts)
    }

    /// The fact as a question; the English twin is the same question in the same phrasing.
    pub fn item(&self, fact: &Fact, lang: usize, phrasing: usize, suffix: &str) -> Item {
        let task = &self.tasks[fact.task];
        let ask = |lang: usize| self.render(fact, lang, task.phrasings[lang][phrasing]);
        Item {
            id: format!("{}/{}/{suffix}", fact.id, LANGUAGES[lang].code),
            task: task.name.into(),
            lang: LANGUAGES[lang].code.into(),
            instruction: ask(lang),
            instruction_en: ask(ENGLISH),
            output: self.answer(fact).base(lang).into(),
            output_en: self.answer(fact).base(ENGLISH).into(),
        }
    }

    /// The fact as plain sentences.
    pub fn sentences(&self, fact: &Fact, lang: usize) -> impl Iterator<Item = String> {
        self.tasks[fact.task].phrasings[lang][PHRASINGS.len()..]
            .iter()
            .map(move |template| self.render(fact, lang, template))
    }

    /// The word that answers.
    pub fn answer(&self, fact: &Fact) -> &Word {
        self.lexicon.word(fact.slots[fact.slots.len() - 1].1)
    }

    fn render(&self, fact: &Fact, lang: usize, template: &str) -> String {
        let mut text = template.to_owned();
        for &(slot, word) in &fact.slots {
            let word = self.lexicon.word(word);
            text = text
                .replace(&format!("{{{slot}~}}"), word.inflected(lang))
                .replace(&format!("{{{slot}}}"), word.base(lang));
        }
        capitalise(&text, LANGUAGES[lang].code)
    }
}

impl Task {
    /// Line 1 `facts TABLE x=COLUMN ... y=COLUMN [key=TASK]`, line 2 the header, then one row per language.
    fn parse(lexicon: &Lexicon, index: usize, name: &'static str, text: &'static str) -> Result<Task> {
        let mut lines = rows(text);
        let (_, first) = lines.next().unwrap_or_default();
        let ["facts", table, assignments @ ..] = first.as_slice() else {
            bail!("line 1: expected `facts TABLE x=COLUMN y=COLUMN`, found {first:?}")
        };
        let (mut key, mut columns) = (name, vec![]);
        for assignment in assignments {
            match assignment.split_once('=').with_context(|| format!("line 1: `{assignment}` is not SLOT=COLUMN"))? {
                ("key", task) => key = task,
                column => columns.push(column),
            }
        }
        ensure!(columns.last().is_some_and(|column| column.0 == "y"), "line 1: the last slot must be y, the answer");
        ensure!(
            lines.next().is_some_and(|(_, header)| header == TASK_HEADER),
            "line 2: expected the header {TASK_HEADER:?}"
        );

        let mut phrasings = vec![];
        for language in &LANGUAGES {
            let (line, cells) = lines.next().with_context(|| format!("no row for `{}`", language.code))?;
            let complete = cells.len() > PHRASINGS.len() + 1 && cells.iter().all(|cell| !cell.is_empty());
            ensure!(
                cells[0] == language.code && complete,
                "line {line}: expected `{}`, four questions and a sentence, found {cells:?}",
                language.code
            );
            phrasings.push(cells[1..].to_vec());
        }
        let facts = read_facts(lexicon, table, &columns)?;
        let facts = facts.into_iter().map(|(row, slots)| {
            let asked: Vec<_> = slots[..slots.len() - 1].iter().map(|slot| lexicon.word(slot.1).id).collect();
            Fact { task: index, id: format!("{name}/{}", asked.join("-")), key: format!("{key}/{row}"), slots }
        });
        Ok(Task { name, key, facts: facts.collect(), phrasings })
    }
}

/// The id of a row in a facts table and the words in the slots that a task names.
type Row = (&'static str, Vec<(&'static str, usize)>);

/// Rows of a facts table; a row with `-` in a needed column does not take part.
fn read_facts(lexicon: &Lexicon, table: &str, columns: &[(&'static str, &'static str)]) -> Result<Vec<Row>> {
    let text = FACTS
        .iter()
        .find(|facts| facts.0 == table)
        .with_context(|| format!("no table assets/corpus/facts/{table}.tsv"))?
        .1;
    let mut lines = rows(text);
    let (_, header) = lines.next().unwrap_or_default();
    let mut wanted = vec![];
    for (slot, column) in columns {
        let position = header.iter().position(|cell| cell.split(':').next() == Some(column));
        let position = position.with_context(|| format!("no column `{column}` in assets/corpus/facts/{table}.tsv"))?;
        wanted.push((*slot, position, header[position].rsplit(':').next().unwrap_or_default()));
    }
    let mut facts = vec![];
    for (line, cells) in lines {
        let place = || format!("assets/corpus/facts/{table}.tsv line {line}");
        ensure!(cells.len() == header.len(), "{}: expected {} cells, found {}", place(), header.len(), cells.len());
        if wanted.iter().all(|&(_, position, _)| cells[position] != "-") {
            let word = |&(slot, position, namespace)| Ok((slot, lexicon.find(namespace, cells[position])?));
            facts.push((cells[0], wanted.iter().map(word).collect::<Result<_>>().with_context(place)?));
        }
    }
    Ok(facts)
}

/// A sentence that opens with a slot still opens with a capital; Turkish keeps the dot on its i.
fn capitalise(text: &str, code: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some('i') if code == "tr" => format!("İ{}", chars.as_str()),
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}
