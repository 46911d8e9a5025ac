//! What is true: joins `assets/corpus/facts` (who relates to whom) with `assets/corpus/tasks.tsv` (what is asked about them).
//! A new kind of question is a line there and its texts in every language. Knows nothing of families or splits.

use super::text::{Text, rows, tables};
use anyhow::{Context, Result, ensure};

const FACTS: &[(&str, &str)] =
    tables!("facts": "animal" "country" "day" "difference" "food" "month" "opposite" "profession" "sum" "thing");
const TASKS: &str = include_str!("../../../assets/corpus/tasks.tsv");
const TASK_HEADER: [&str; 6] = ["task", "facts", "x", "z", "y", "key"];

/// One true statement, seen from one task.
pub struct Fact {
    pub task: &'static str,
    /// `capital/eg`: the task and what is asked about.
    pub id: String,
    /// What is held out together: a relation and its inverse share it.
    pub key: String,
    /// Slot letter and word: `x` (and `z`) is asked about, `y` is the answer and comes last.
    pub slots: Vec<(char, &'static str)>,
}

impl Fact {
    pub fn subject(&self) -> &'static str {
        self.slots[0].1
    }

    pub fn answer(&self) -> &'static str {
        self.slots[self.slots.len() - 1].1
    }
}

/// The facts of all tasks.
///
/// # Errors
/// A line of another shape, a column or a word that is not there.
pub fn facts(text: &Text) -> Result<Vec<Fact>> {
    let mut lines = rows(TASKS);
    let (_, header) = lines.next().unwrap_or_default();
    ensure!(header == TASK_HEADER, "assets/corpus/tasks.tsv line 1: expected {TASK_HEADER:?}, found {header:?}");
    let mut facts = vec![];
    for (line, cells) in lines {
        let place = || format!("assets/corpus/tasks.tsv line {line}");
        let &[task, table, x, z, y, key] = cells.as_slice() else {
            anyhow::bail!("{}: expected {} cells, found {}", place(), TASK_HEADER.len(), cells.len())
        };
        let columns: Vec<_> = [('x', x), ('z', z), ('y', y)].into_iter().filter(|column| column.1 != "-").collect();
        for (row, slots) in read(text, table, &columns).with_context(place)? {
            let asked: Vec<_> = slots[..slots.len() - 1].iter().filter_map(|slot| slot.1.rsplit('/').next()).collect();
            facts.push(Fact { task, id: format!("{task}/{}", asked.join("-")), key: format!("{key}/{row}"), slots });
        }
    }
    Ok(facts)
}

/// The id of a row in a table of facts and the words in the slots.
type Row = (&'static str, Vec<(char, &'static str)>);

/// Rows of a table of facts; a row with `-` in a needed column does not take part.
fn read(text: &Text, table: &str, columns: &[(char, &str)]) -> Result<Vec<Row>> {
    let file = format!("assets/corpus/facts/{table}.tsv");
    let found = FACTS.iter().find(|facts| facts.0 == table).with_context(|| format!("no table {file}"))?.1;
    let mut lines = rows(found);
    let (_, header) = lines.next().unwrap_or_default();
    let mut wanted = vec![];
    for &(slot, column) in columns {
        let position = header.iter().position(|cell| cell.split(':').next() == Some(column));
        let position = position.with_context(|| format!("no column `{column}` in {file}"))?;
        wanted.push((slot, position, header[position].rsplit(':').next().unwrap_or_default()));
    }
    let mut facts = vec![];
    for (line, cells) in lines {
        let place = || format!("{file} line {line}");
        ensure!(cells.len() == header.len(), "{}: expected {} cells, found {}", place(), header.len(), cells.len());
        if wanted.iter().all(|&(_, position, _)| cells[position] != "-") {
            let word = |&(slot, position, namespace)| Ok((slot, text.find(namespace, cells[position])?));
            facts.push((cells[0], wanted.iter().map(word).collect::<Result<_>>().with_context(place)?));
        }
    }
    Ok(facts)
}
