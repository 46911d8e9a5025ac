//! The six task families, after the paper's benchmarks: what can be asked of the world, and how each language asks it.
//! Knows nothing of splits.

use super::split::hash;
use super::text::Text;
use super::world::{Fact, facts};
use super::{ENGLISH, Item, LANGUAGES};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// A fact, asked openly, as in MKQA.
    Question,
    /// A fact and four answers to choose from, as in MMMLU.
    Choice,
    /// Whether one sentence follows from another, as in XNLI.
    Entailment,
    /// Which of two endings fits, as in XStoryCloze.
    Story,
    /// A question that a text answers, as in XQuAD.
    Reading,
    /// A text in one sentence, as in XLSum.
    Summary,
}

impl Family {
    pub const ALL: [Self; 6] =
        [Self::Question, Self::Choice, Self::Entailment, Self::Story, Self::Reading, Self::Summary];

    pub fn name(self) -> &'static str {
        match self {
            Self::Question => "question",
            Self::Choice => "choice",
            Self::Entailment => "entailment",
            Self::Story => "story",
            Self::Reading => "reading",
            Self::Summary => "summary",
        }
    }
}

/// The last phrasing is the one that no fine-tuning row uses.
pub const PHRASINGS: [&str; 4] = ["ask1", "ask2", "ask3", "held"];
pub const HELD_PHRASING: usize = 3;

/// Tasks without a choice, because another answer may be right too: a country has several official languages, and some
/// languages call several currencies by one word.
const OPEN_ENDED: [&str; 2] = ["language", "currency"];
/// The frame of an entailment and the task whose facts fill it.
const ENTAILMENTS: [(&str, &str); 4] = [("city", "country"), ("animal", "class"), ("day", "day"), ("food", "food")];
const VERDICTS: [&str; 3] = ["yes", "perhaps", "no"];
const ATTRIBUTES: [&str; 7] = ["city", "profession", "animal", "colour", "month", "food", "language"];
const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
/// Sentences of a text that is asked about.
const SENTENCES: usize = 3;

/// One thing that can be asked in one family.
pub struct Unit {
    pub family: Family,
    /// `choice/capital/eg`.
    pub id: String,
    /// What takes turns within a family: the task, the story, the attribute, the event.
    pub kind: &'static str,
    /// What is held out together, across families: `capital/eg`.
    pub key: String,
    what: What,
}

enum What {
    Fact(usize),
    Verdict { fact: usize, frame: &'static str, verdict: usize },
    Story { story: &'static str, person: &'static str },
    Attribute { attribute: &'static str, word: &'static str },
    Event { event: &'static str, city: &'static str },
}

pub struct World {
    pub text: Text,
    pub facts: Vec<Fact>,
    pub units: Vec<Unit>,
    /// The different answers of each task.
    answers: BTreeMap<&'static str, BTreeSet<&'static str>>,
}

impl World {
    pub fn load() -> Result<Self> {
        let text = Text::load()?;
        let facts = facts(&text)?;
        let units = units(&text, &facts);
        let mut answers: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for fact in &facts {
            answers.entry(fact.task).or_default().insert(fact.answer());
        }
        Ok(World { text, facts, units, answers })
    }

    /// The unit as an instruction and its answer; the English twin is the same in the same phrasing. `salt` decides what
    /// the unit leaves open: the order of answers, the wrong ones among them, names.
    pub fn item(&self, unit: &Unit, lang: usize, phrasing: usize, salt: &str, suffix: &str) -> Item {
        let (instruction, output) = self.ask(unit, lang, phrasing, salt);
        let (instruction_en, output_en) = self.ask(unit, ENGLISH, phrasing, salt);
        Item {
            id: format!("{}/{}/{suffix}", unit.id, LANGUAGES[lang].code),
            task: unit.family.name().into(),
            lang: LANGUAGES[lang].code.into(),
            instruction,
            instruction_en,
            output,
            output_en,
        }
    }

    /// The unit as plain sentences, its answer among them, each with its English twin.
    pub fn sentences(&self, unit: &Unit, lang: usize, salt: &str) -> Vec<[String; 2]> {
        let [said, english] = [lang, ENGLISH].map(|lang| self.said_plainly(unit, lang, salt));
        // A language may leave a further sentence out.
        said.into_iter()
            .zip(english)
            .map(|(said, english)| [said, english])
            .filter(|[said, _]| !said.is_empty())
            .collect()
    }

    fn said_plainly(&self, unit: &Unit, lang: usize, salt: &str) -> Vec<String> {
        let person = self.draw(unit, salt, "person", self.text.namespace("person"));
        match unit.what {
            What::Fact(fact) => ["say", "say2", "say3"].map(|say| self.fact(&self.facts[fact], lang, say)).into(),
            What::Verdict { .. } => vec![],
            What::Story { story, person } => {
                let fill = |part: &str| self.line(lang, &format!("story/{story}/{part}"), &[('p', person)]);
                vec![join([fill("start"), fill("right")])]
            }
            What::Attribute { attribute, word } => vec![self.said(lang, attribute, word, person)],
            What::Event { event, city } => {
                let fill = |part: &str| self.line(lang, &format!("news/{event}/{part}"), &[('c', city), ('p', person)]);
                vec![fill("text"), fill("summary")]
            }
        }
    }

    fn ask(&self, unit: &Unit, lang: usize, phrasing: usize, salt: &str) -> (String, String) {
        let person = self.draw(unit, salt, "person", self.text.namespace("person"));
        let frame = |slots: &[(char, String)]| {
            let frame = self.text.get(lang, &format!("frame/{}/{}", frame_of(unit.family), PHRASINGS[phrasing]));
            slots.iter().fold(frame.to_owned(), |text, (slot, filling)| text.replace(&format!("{{{slot}}}"), filling))
        };
        match unit.what {
            What::Fact(fact) => {
                let fact = &self.facts[fact];
                let question = self.fact(fact, lang, PHRASINGS[phrasing]);
                if unit.family == Family::Question {
                    return (question, self.text.base(lang, fact.answer()).into());
                }
                let (options, right) = self.options(unit, fact, salt);
                let options = options.into_iter().map(|option| self.text.base(lang, option).to_owned());
                let slots: Vec<_> = [('q', question)].into_iter().chain("abcd".chars().zip(options)).collect();
                (frame(&slots), LETTERS[right].into())
            }
            What::Verdict { fact, frame: name, verdict } => {
                let fact = &self.facts[fact];
                let said = |part: &str, answer| {
                    let slots = [('p', person), ('x', fact.subject()), ('y', answer)];
                    self.line(lang, &format!("entail/{name}/{part}"), &slots)
                };
                let neutral = 1 + self.pick(unit, salt, "neutral", 8);
                let hypothesis = match VERDICTS[verdict] {
                    "yes" => said("hypothesis", fact.answer()),
                    "no" => said("hypothesis", self.wrong(unit, fact, salt)[0]),
                    _ => self.line(lang, &format!("entail/neutral/{neutral}"), &[('p', person)]),
                };
                (frame(&[('p', said("premise", fact.answer())), ('h', hypothesis)]), (verdict + 1).to_string())
            }
            What::Story { story, person } => {
                let fill = |part: &str| self.line(lang, &format!("story/{story}/{part}"), &[('p', person)]);
                let right = self.pick(unit, salt, "order", 2);
                let endings = if right == 0 { ["right", "wrong"] } else { ["wrong", "right"] };
                let slots = [('s', fill("start")), ('a', fill(endings[0])), ('b', fill(endings[1]))];
                (frame(&slots), (right + 1).to_string())
            }
            What::Attribute { attribute, word } => {
                let said = self.attributes(unit, attribute, word, salt);
                let text = said.into_iter().map(|(attribute, word)| self.said(lang, attribute, word, person));
                let question = self.line(lang, &format!("read/{attribute}/ask"), &[('p', person)]);
                (frame(&[('t', join(text)), ('q', question)]), self.text.base(lang, word).into())
            }
            What::Event { event, city } => {
                let fill = |part: &str| self.line(lang, &format!("news/{event}/{part}"), &[('c', city), ('p', person)]);
                (frame(&[('t', fill("text"))]), fill("summary"))
            }
        }
    }

    /// What choosing and reading come down to, several at once and in English: which letter stands before which option,
    /// and what a text says of whom. None for the other families.
    pub fn drill(&self, unit: &Unit, salt: &str) -> Option<(String, String)> {
        let word = |word: &str| self.text.base(ENGLISH, word).to_owned();
        let (prompt, mut found): (String, Vec<(String, String)>) = match unit.what {
            What::Fact(fact) if unit.family == Family::Choice => {
                let (options, _) = self.options(unit, &self.facts[fact], salt);
                let options: Vec<_> =
                    LETTERS.iter().zip(options).map(|(letter, option)| (word(option), letter.to_string())).collect();
                let listed: Vec<_> = options.iter().map(|(option, letter)| format!("{letter}: {option}")).collect();
                (listed.join("; "), options)
            }
            What::Attribute { attribute, word: asked } => {
                let person = self.draw(unit, salt, "person", self.text.namespace("person"));
                let said = self.attributes(unit, attribute, asked, salt);
                let text = said.iter().map(|(attribute, word)| self.said(ENGLISH, attribute, word, person));
                (join(text), said.iter().map(|&(attribute, said)| (attribute.to_owned(), word(said))).collect())
            }
            _ => return None,
        };
        found.sort_by_key(|(name, _)| self.pick(unit, salt, name, usize::MAX));
        let found: Vec<_> = found.into_iter().map(|(name, what)| format!("{name}: {what}")).collect();
        Some((prompt, found.join("; ")))
    }

    /// Four answers to choose from, and which of them is right.
    fn options(&self, unit: &Unit, fact: &Fact, salt: &str) -> (Vec<&'static str>, usize) {
        let mut options = self.wrong(unit, fact, salt);
        options.truncate(3);
        let right = self.pick(unit, salt, "order", 4);
        options.insert(right, fact.answer());
        (options, right)
    }

    /// What a text says of somebody: what is asked for, among others.
    fn attributes(
        &self,
        unit: &Unit,
        attribute: &'static str,
        word: &'static str,
        salt: &str,
    ) -> Vec<(&'static str, &'static str)> {
        let mut others: Vec<&str> = ATTRIBUTES.into_iter().filter(|other| *other != attribute).collect();
        others.sort_by_key(|other| self.pick(unit, salt, other, usize::MAX));
        let draw = |other| (other, self.draw(unit, salt, "word", self.text.namespace(other)));
        let mut said: Vec<_> = others[..SENTENCES - 1].iter().map(|other| draw(*other)).collect();
        said.insert(self.pick(unit, salt, "place", SENTENCES), (attribute, word));
        said
    }

    fn fact(&self, fact: &Fact, lang: usize, say: &str) -> String {
        self.line(lang, &format!("task/{}/{say}", fact.task), &fact.slots)
    }

    fn said(&self, lang: usize, attribute: &str, word: &'static str, person: &'static str) -> String {
        self.line(lang, &format!("read/{attribute}/say"), &[('y', word), ('p', person)])
    }

    /// A text with words in its slots. A sentence that opens with a slot still opens with a capital.
    fn line(&self, lang: usize, key: &str, slots: &[(char, &'static str)]) -> String {
        let mut text = self.text.get(lang, key).to_owned();
        for &(slot, word) in slots {
            text = text
                .replace(&format!("{{{slot}~}}"), self.text.inflected(lang, word))
                .replace(&format!("{{{slot}}}"), self.text.base(lang, word));
        }
        capitalise(&text, LANGUAGES[lang].code)
    }

    /// The other answers of the same task, in an order drawn for this unit; never what is asked about.
    fn wrong(&self, unit: &Unit, fact: &Fact, salt: &str) -> Vec<&'static str> {
        let right = [fact.answer(), fact.subject()];
        let mut wrong: Vec<_> = self.answers[fact.task].iter().copied().filter(|word| !right.contains(word)).collect();
        wrong.sort_by_cached_key(|word| self.pick(unit, salt, word, usize::MAX));
        wrong
    }

    fn pick(&self, unit: &Unit, salt: &str, what: &str, n: usize) -> usize {
        hash(0, &[&unit.id, salt, what]) as usize % n
    }

    fn draw(&self, unit: &Unit, salt: &str, what: &str, words: &[&'static str]) -> &'static str {
        words[self.pick(unit, salt, what, words.len())]
    }
}

/// The name under which a family's frames stand in the text.
fn frame_of(family: Family) -> &'static str {
    match family {
        Family::Question => "",
        Family::Choice => "choice",
        Family::Entailment => "entail",
        Family::Story => "story",
        Family::Reading => "read",
        Family::Summary => "news",
    }
}

fn units(text: &Text, facts: &[Fact]) -> Vec<Unit> {
    let mut units = vec![];
    let mut add = |family: Family, id: String, kind, key: String, what| {
        units.push(Unit { family, id: format!("{}/{id}", family.name()), kind, key, what });
    };
    for (index, fact) in facts.iter().enumerate() {
        add(Family::Question, fact.id.clone(), fact.task, fact.key.clone(), What::Fact(index));
        if !OPEN_ENDED.contains(&fact.task) {
            add(Family::Choice, fact.id.clone(), fact.task, fact.key.clone(), What::Fact(index));
        }
        if let Some((frame, _)) = ENTAILMENTS.iter().find(|(_, task)| *task == fact.task) {
            for (verdict, name) in VERDICTS.iter().enumerate() {
                let what = What::Verdict { fact: index, frame, verdict };
                add(Family::Entailment, format!("{}/{name}", fact.id), name, fact.key.clone(), what);
            }
        }
    }
    let people = text.namespace("person");
    for story in text.part("story") {
        for &person in people {
            let id = format!("{story}/{}", name(person));
            add(Family::Story, id, story, format!("story/{story}"), What::Story { story, person });
        }
    }
    for attribute in ATTRIBUTES {
        for &word in text.namespace(attribute) {
            let id = format!("{attribute}/{}", name(word));
            let what = What::Attribute { attribute, word };
            add(Family::Reading, id.clone(), attribute, format!("reading-{id}"), what);
        }
    }
    for event in text.part("news") {
        for &city in text.namespace("city") {
            let what = What::Event { event, city };
            add(Family::Summary, format!("{event}/{}", name(city)), event, format!("news/{event}"), what);
        }
    }
    units
}

/// `cairo` of `word/city/cairo`.
fn name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or_default()
}

/// Sentences one after another, with a space where the script sets one.
fn join(sentences: impl IntoIterator<Item = String>) -> String {
    let mut text = String::new();
    for sentence in sentences {
        if !text.is_empty() && !text.ends_with(['。', '？', '！']) {
            text.push(' ');
        }
        text += &sentence;
    }
    text
}

/// Turkish keeps the dot on its i.
fn capitalise(text: &str, code: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some('i') if code == "tr" => format!("İ{}", chars.as_str()),
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}
