//! Proves that training rows are read whole, and that every fault in a file of rows is named with its place, never a panic.

mod bounded;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use trainer::data::{Columns, Format, Reading, Row, read_rows, read_rows_as};

const GOOD: &str = r#"{"id":"a","task":"qa","lang":"es","instruction":"¿Qué?","instruction_en":"What?","output":"Eso","extra":{"output":1}}"#;

fn read_as(name: &str, bytes: &[u8]) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join(name);
    std::fs::write(&file, bytes)?;
    read_rows(&file)
}

fn read(text: impl AsRef<[u8]>) -> anyhow::Result<Vec<Row>> {
    read_as("rows.jsonl", text.as_ref())
}

fn zip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[track_caller]
fn assert_fault(text: impl AsRef<[u8]>, parts: &[&str]) -> String {
    let message = format!("{:#}", read(text).expect_err("the rows must be refused"));
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
    message
}

#[test]
fn a_row_is_read_with_extra_keys_ignored_and_blank_lines_skipped() {
    let rows = read(format!("\u{feff}{GOOD}\r\n\n{GOOD}")).unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (rows[0].instruction.as_str(), rows[0].instruction_en.as_str(), rows[0].output.as_str()),
        ("¿Qué?", "What?", "Eso")
    );
    assert_eq!(rows[0].output_en, None);
}

#[test]
fn a_zipped_file_of_several_members_gives_the_same_rows() {
    let line = format!("{GOOD}\n");
    let members = [zip(line.as_bytes()), zip(line.as_bytes())].concat();
    assert_eq!(read_as("rows.jsonl.gz", &members).unwrap(), read(line.repeat(2)).unwrap());
}

#[test]
fn an_english_row_is_its_own_twin() {
    let row = &read(r#"{"id":"a","task":"qa","lang":"en","instruction":"What?","output":"That"}"#).unwrap()[0];
    assert_eq!(row.instruction_en, "What?");
}

#[test]
fn a_row_of_another_language_without_its_english_twin_is_refused() {
    let row = r#"{"id":"a","task":"qa","lang":"sw","instruction":"Nini?","output":"Hiki"}"#;
    assert_fault(
        format!("{GOOD}\n{row}"),
        &["rows.jsonl:2:1", "`instruction_en`", "English twin", "found nothing", "Nini?"],
    );
    assert_fault(row.replace("Nini?\"", "Nini?\",\"instruction_en\":\" \""), &["`instruction_en`", "an empty one"]);
}

#[test]
fn all_faults_are_found_in_one_pass_with_line_and_column() {
    let text = [
        r#"{"id":"a","task":"qa","lang":"es","instruction":"","instruction_en":"x","output":7}"#,
        GOOD,
        r#"{"id":"é","task":"qa","lang":"es","instruction":"a","instruction_en":"x","output":["b"]}"#,
        r#"{"id":"a" "task"}"#,
        r#"["id","task"]"#,
        r#"{"id":"a","extra":{"output":"x"},"a\"output":1,"task":"qa","lang":"es","instruction":"a","instruction_en":"x","output" : null}"#,
    ]
    .join("\n");
    let message = assert_fault(
        &text,
        &[
            "rows.jsonl:1:49: `instruction`: expected a non-empty string, found an empty one",
            "rows.jsonl:1:82: `output`: expected a non-empty string, found a number",
            "rows.jsonl:3:83: `output`: expected a non-empty string, found a list",
            "rows.jsonl:4:11: expected one JSON object, found broken JSON (expected `,` or `}`)",
            "rows.jsonl:5:1: expected one JSON object per line, found '['",
            "`output`: expected a non-empty string, found null",
        ],
    );
    assert!(!message.contains("rows.jsonl:2:"), "{message}");
    let column = text.lines().last().unwrap().find("null").unwrap() + 1;
    assert!(message.contains(&format!("rows.jsonl:6:{column}:")), "{message}");
}

#[test]
fn reports_stop_after_fifty_faults_and_previews_stay_short() {
    let message = assert_fault(format!("[{}\n", "x".repeat(500)).repeat(80), &["stopped at line 50 after 50 faults"]);
    assert_eq!(message.lines().count(), 52);
    assert!(
        message.lines().all(|line| line.rsplit(" | ").next().unwrap().chars().count() <= 80 || !line.contains(" | "))
    );
}

#[test]
fn a_key_given_twice_is_refused() {
    assert_fault(GOOD.replace("\"task\"", "\"id\":\"b\",\"task\""), &["rows.jsonl:1:", "duplicate field `id`"]);
}

#[test]
fn bytes_that_are_not_text_are_refused_at_their_column() {
    let mut bytes = GOOD.as_bytes().to_vec();
    bytes[7] = 0xff;
    assert_fault(&bytes, &["rows.jsonl:1:8", "expected UTF-8"]);
}

#[test]
fn a_line_of_ten_megabytes_is_refused_and_the_next_line_still_read() {
    let long = GOOD.replace("Eso", &"e".repeat(10 << 20));
    let message = assert_fault(format!("{long}\n{{}}\n"), &["rows.jsonl:1:1", "found a longer line", "rows.jsonl:2:1"]);
    assert!(!message.contains("rows.jsonl:3:"), "the rest of the long line was read as rows");
    assert!(message.len() < 3_000, "{} bytes of report", message.len());
}

#[test]
fn deep_nesting_never_overflows_the_stack() {
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_fault(GOOD.replace("\"Eso\"", &deep), &["rows.jsonl:1:", "recursion limit"]);
    assert_eq!(read(GOOD.replace("{\"output\":1}", &deep)).unwrap().len(), 1);
}

#[test]
fn a_gzip_file_cut_anywhere_is_an_error() {
    let whole = zip(format!("{GOOD}\n").repeat(50).as_bytes());
    for length in 1..whole.len() {
        let error = read_as("rows.jsonl.gz", &whole[..length]).expect_err("a cut file must be refused");
        assert!(format!("{error:#}").contains("damaged or cut short"), "{length}: {error:#}");
    }
    assert!(read_as("rows.jsonl.gz", GOOD.as_bytes()).is_err());
}

#[test]
fn a_line_cut_or_changed_anywhere_never_panics() {
    for at in 0..GOOD.len() {
        let _ = read(&GOOD.as_bytes()[..at]);
        for byte in [0, b'"', b'\\', b'{', b']', 0x80, 0xf0] {
            let mut bytes = GOOD.as_bytes().to_vec();
            bytes[at] = byte;
            let _ = read(&bytes);
        }
    }
}

#[test]
fn a_missing_or_empty_file_is_an_error_with_its_name() {
    assert!(format!("{:#}", read_rows(Path::new("no/such.jsonl")).unwrap_err()).contains("no/such.jsonl"));
    assert_fault("\n\n", &["rows.jsonl", "found none"]);
}

fn read_with(name: &str, bytes: impl AsRef<[u8]>, reading: &Reading) -> anyhow::Result<Vec<Row>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join(name);
    std::fs::write(&file, bytes)?;
    read_rows_as(&file, reading)
}

fn swahili() -> Reading {
    Reading { lang: "sw".into(), ..Reading::default() }
}

#[test]
fn every_container_gives_the_same_rows() {
    let lines = format!("{GOOD}\n{GOOD}\n");
    let expected = read(&lines).unwrap();
    let list = format!("\u{feff}[\n  {GOOD},\n{}\n]\n", GOOD.replace(",\"task\"", ",\n \"task\""));
    assert_eq!(read_as("rows.json", list.as_bytes()).unwrap(), expected);
    assert_eq!(read_as("rows.json", lines.as_bytes()).unwrap(), expected, "lines in a .json file");
    assert_eq!(read_as("rows.json.gz", &zip(list.as_bytes())).unwrap(), expected);
    assert_eq!(read_as("rows.jsonl.zst", &zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap(), expected);
    assert_eq!(read_as("rows.parquet", &table()).unwrap(), expected[..1]);
}

/// `GOOD` as a table of one row.
fn table() -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    let names = ["id", "task", "lang", "instruction", "instruction_en", "output", "output_en"];
    let columns: String = names.iter().map(|name| format!("optional binary {name} (UTF8); ")).collect();
    let schema = parquet::schema::parser::parse_message_type(&format!("message rows {{ {columns} }}")).unwrap();
    let mut writer =
        parquet::file::writer::SerializedFileWriter::new(Vec::new(), schema.into(), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for value in ["a", "qa", "es", "¿Qué?", "What?", "Eso", ""] {
        let mut column = group.next_column().unwrap().unwrap();
        let (values, levels) = if value.is_empty() { (vec![], [0]) } else { (vec![ByteArray::from(value)], [1]) };
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn a_column_of_dates_is_no_text_to_train_on() {
    use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
    let columns =
        "required binary instruction (UTF8); required binary instruction_en (UTF8); required int32 output (DATE);";
    let schema = parquet::schema::parser::parse_message_type(&format!("message rows {{ {columns} }}")).unwrap();
    let mut writer =
        parquet::file::writer::SerializedFileWriter::new(Vec::new(), schema.into(), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for text in ["¿Cuándo?", "When?"] {
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[ByteArray::from(text)], None, None).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int32Type>().write_batch(&[18_000], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    let fault = format!("{:#}", read_as("rows.parquet", &writer.into_inner().unwrap()).unwrap_err());
    assert!(fault.contains("output") && fault.contains("an object"), "{fault}");
}

#[test]
fn every_format_is_told_by_its_first_record() {
    let expected = |id: &str| Row { id: id.into(), task: String::new(), ..read(GOOD).unwrap().remove(0) };
    let spanish = Reading { lang: "es".into(), ..Reading::default() };
    for text in [
        r#"{"instruction":"¿Qué?","instruction_en":"What?","output":"Eso"}"#,
        r#"{"instruction":"¿Qué?","input":"","instruction_en":"What?","output":"Eso"}"#,
        r#"{"messages":[{"role":"user","content":"¿Qué?"},{"role":"assistant","content":"Eso"}],"instruction_en":"What?"}"#,
        r#"{"conversations":[{"from":"human","value":"¿Qué?"},{"from":"gpt","value":"Eso"}],"instruction_en":"What?"}"#,
    ] {
        assert_eq!(read_with("rows.jsonl", text, &spanish).unwrap(), [expected("line 1")], "{text}");
        let error = format!("{:#}", read(text).unwrap_err());
        assert!(error.contains("`lang`: expected a non-empty string (or set data.lang), found nothing"), "{error}");
    }
    let numbered = r#"{"id":7,"task":1,"lang":null,"instruction":"¿Qué?","instruction_en":"What?","output":"Eso"}"#;
    let expected = Row { task: "1".into(), ..expected("7") };
    assert_eq!(read_with("rows.jsonl", numbered, &spanish).unwrap(), [expected]);
    let alpaca = r#"{"instruction":"Add","input":"1 2","output":"3","lang":"en"}"#;
    assert_eq!(read(alpaca).unwrap()[0].instruction, "Add\n1 2");
}

#[test]
fn an_input_belongs_to_its_instruction_and_to_the_twin_whatever_the_first_record_has() {
    let first = r#"{"lang":"es","instruction":"Di hola","instruction_en":"Say hello","output":"Hola"}"#;
    let row = r#"{"lang":"es","instruction":"Suma","input":"1 y 2","instruction_en":"Add","output":"3"}"#;
    let own = row.replace("\"output\"", "\"input_en\":\"1 and 2\",\"output\"");
    let english = r#"{"lang":"en","instruction":"Add","input":"1 2","output":"3"}"#;
    let text = [first, row, &own, english].join("\n");
    for format in [Format::Auto, Format::Ours, Format::Alpaca, Format::Authors] {
        let rows = read_with("rows.jsonl", &text, &Reading { format, ..Reading::default() }).unwrap();
        let prompts: Vec<_> = rows.iter().map(|row| (row.instruction.as_str(), row.instruction_en.as_str())).collect();
        let expected = [
            ("Di hola", "Say hello"),
            ("Suma\n1 y 2", "Add\n1 y 2"),
            ("Suma\n1 y 2", "Add\n1 and 2"),
            ("Add\n1 2", "Add\n1 2"),
        ];
        assert_eq!(prompts, expected, "{format:?}");
    }
    // Named columns keep it, unless its column was named for something else.
    let named = |instruction: &str| {
        let columns = Columns { instruction: Some(instruction.into()), ..Columns::default() };
        let row = row.replace("\"instruction\"", "\"question\"");
        read_with("rows.jsonl", row, &Reading { columns, ..Reading::default() }).unwrap().remove(0)
    };
    assert_eq!((&*named("question").instruction, &*named("question").instruction_en), ("Suma\n1 y 2", "Add\n1 y 2"));
    assert_eq!((&*named("input").instruction, &*named("input").instruction_en), ("1 y 2", "Add"));
    let error = format!("{:#}", read(row.replace("\"1 y 2\"", "[1,2]")).unwrap_err());
    assert!(error.contains("`input`: expected a non-empty string, found a list"), "{error}");
}

#[test]
fn named_columns_take_the_place_of_ours() {
    let columns = Columns {
        instruction: Some("question".into()),
        instruction_en: Some("question_en".into()),
        output: Some("answer".into()),
        ..Columns::default()
    };
    let reading = Reading { columns, ..swahili() };
    let row = r#"{"question":"Nini?","question_en":"What?","answer":"Hiki","output":7}"#;
    let rows = read_with("rows.jsonl", row, &reading).unwrap();
    assert_eq!((rows[0].instruction.as_str(), rows[0].output.as_str()), ("Nini?", "Hiki"));
    let error = format!("{:#}", read_with("rows.jsonl", row.replace("\"Hiki\"", "7"), &reading).unwrap_err());
    assert!(error.contains("`answer`: expected a non-empty string, found a number"), "{error}");
}

#[test]
fn a_fault_inside_a_conversation_is_named_by_its_path_and_place() {
    let text = concat!(
        "[\n {\"messages\": [{\"role\": \"user\", \"content\": \"a\"},\n",
        "  {\"role\": \"robot\", \"content\": 3}], \"instruction_en\": \"a\"},\n",
        " {\"messages\": [], \"instruction_en\": \"a\"}]"
    );
    let error = format!("{:#}", read_with("rows.json", text, &swahili()).unwrap_err());
    for part in [
        "rows.json:3:12: `messages[1].role`: expected \"assistant\", found \"robot\"",
        "rows.json:3:32: `messages[1].content`: expected a non-empty string, found a number",
        "rows.json:4:15: `messages`: expected an assistant turn after every user turn, found 0 user and 0 assistant turns",
    ] {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
}

const CONVERSATION: &str = r#"{"id":"c","lang":"es","messages":[{"role":"system","content":"Sé breve."},{"role":"user","content":"¿Qué?"},{"role":"assistant","content":"Eso"},{"role":"user","content":"¿Y?"},{"role":"assistant","content":"Nada"}],"messages_en":[{"role":"user","content":"What?"},{"role":"assistant","content":"That"},{"role":"user","content":"And?"}]}"#;

#[test]
fn each_answer_of_a_conversation_is_a_row_after_all_that_was_said_before() {
    let first = Row {
        id: "c answer 1".into(),
        lang: "es".into(),
        instruction: "¿Qué?".into(),
        instruction_en: "What?".into(),
        output: "Eso".into(),
        output_en: Some("That".into()),
        system: Some("Sé breve.".into()),
        ..Row::default()
    };
    let second = Row {
        id: "c answer 2".into(),
        instruction: "¿Y?".into(),
        instruction_en: "And?".into(),
        output: "Nada".into(),
        output_en: None,
        history: vec![["¿Qué?", "Eso"].map(String::from)],
        history_en: vec![["What?", "That"].map(String::from)],
        ..first.clone()
    };
    let expected = [first, second];
    assert_eq!(read(CONVERSATION).unwrap(), expected);
    assert_eq!(expected[0].before_en().system, Some("Sé breve."), "where there is no English one");
    let sharegpt = CONVERSATION
        .replace("messages", "conversations")
        .replace("role", "from")
        .replace("content", "value")
        .replace("\"user\"", "\"human\"")
        .replace("\"assistant\"", "\"gpt\"");
    assert_eq!(read(sharegpt).unwrap(), expected);
    let english = CONVERSATION.replace("\"es\"", "\"en\"").replace("messages_en", "other");
    let rows = read(english).unwrap();
    assert_eq!((&rows[1].history_en, &rows[1].instruction_en), (&rows[1].history, &rows[1].instruction));

    // A row that was written with its history is one row, and itself again.
    let lines: String = expected.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
    assert_eq!(read(lines).unwrap(), expected);
}

#[test]
fn a_conversation_out_of_turn_or_without_its_twin_is_a_fault_with_its_place() {
    let twin = CONVERSATION.find(",\"messages_en\"").unwrap();
    let without = format!("{}}}", &CONVERSATION[..twin]);
    let expected = "`messages_en`: expected the English twin of a conversation of 2 questions, found ";
    assert_fault(without, &[expected, "found nothing"]);
    assert_fault(
        CONVERSATION.replace(",{\"role\":\"user\",\"content\":\"And?\"}", ""),
        &[expected, "found 1 questions and 1 answers"],
    );
    assert_fault(
        CONVERSATION.replace("{\"role\":\"assistant\",\"content\":\"Eso\"},", ""),
        &["rows.jsonl:1:117: `messages[2].role`: expected \"assistant\", found \"user\""],
    );
    assert_fault(
        CONVERSATION.replace(",{\"role\":\"assistant\",\"content\":\"Nada\"}", ""),
        &["`messages`: expected an assistant turn after every user turn, found 2 user and 1 assistant turns"],
    );
    let pair = r#"{"role":"user","content":"¿Y?"},{"role":"assistant","content":"Nada"}"#;
    let long = CONVERSATION.replace(pair, &vec![pair; 65].join(","));
    assert_fault(long, &["`messages`: expected at most 64 exchanges; divide it, found 133 turns"]);

    let flat = r#"{"lang":"es","instruction":"¿Y?","instruction_en":"And?","output":"x","history":[["¿Qué?","Eso"]],"history_en":[["What?","That"]]}"#;
    assert_eq!(read(flat).unwrap()[0].history, [["¿Qué?", "Eso"].map(String::from)]);
    assert_fault(
        flat.replace("\"history_en\"", "\"other\""),
        &["`history_en`: expected the English twin of the history, 1 pairs, found nothing"],
    );
    assert_fault(
        flat.replace("[\"What?\",\"That\"]", "[\"What?\"]"),
        &["`history_en[0]`: expected two non-empty strings", "another list"],
    );
    assert_fault(
        flat.replace("[[\"¿Qué?\",\"Eso\"]]", "3"),
        &["`history`: expected a list of at most 64 pairs", "a number"],
    );
    // A column that means something else is named away.
    let columns = Columns { history: Some(String::new()), history_en: Some(String::new()), ..Columns::default() };
    let reading = Reading { columns, ..Reading::default() };
    assert_eq!(read_with("rows.jsonl", flat, &reading).unwrap()[0].history, Vec::<[String; 2]>::new());
}

#[test]
fn a_list_cut_anywhere_is_an_error_with_its_place() {
    let list = format!("[{GOOD},\n{GOOD}]");
    for length in 1..list.len() {
        let error = read_as("rows.json", &list.as_bytes()[..length]).expect_err("a cut list must be refused");
        assert!(format!("{error:#}").contains("rows.json:"), "{length}: {error:#}");
    }
    let error = format!("{:#}", read_as("rows.json", format!("[{GOOD} {GOOD}]").as_bytes()).unwrap_err());
    assert!(error.contains("expected `,` or `]` after an element of the list, found '{'"), "{error}");
}

#[test]
fn ten_thousand_mutated_files_of_each_format_never_panic() {
    use rand::{RngExt, SeedableRng};
    let chat = r#"{"messages":[{"role":"user","content":"¿Qué?"},{"role":"assistant","content":"Eso"}],"lang":"es","instruction_en":"What?"}"#;
    let alpaca = r#"{"instruction":"¿Qué?","input":"x","instruction_en":"What?","output":"Eso","lang":"es"}"#;
    let list = format!("[{GOOD},\n{chat}]");
    let lines = format!("{GOOD}\n{GOOD}\n");
    let seeds: [(&str, Vec<u8>); 8] = [
        ("rows.jsonl", CONVERSATION.into()),
        ("rows.jsonl", lines.clone().into()),
        ("rows.jsonl", chat.into()),
        ("rows.jsonl", alpaca.into()),
        ("rows.json", list.into()),
        ("rows.jsonl.gz", zip(lines.as_bytes())),
        ("rows.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap()),
        ("rows.parquet", table()),
    ];
    let dir = tempfile::tempdir().unwrap();
    // What the table's library panics over is caught; the messages would drown everything else.
    std::panic::set_hook(Box::new(|_| {}));
    for (kind, (name, seed)) in seeds.iter().enumerate() {
        let file = dir.path().join(name);
        for seed_number in 0..10_000u64 {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed_number);
            let mut bytes = seed.clone();
            for _ in 0..rng.random_range(1..5) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..4) {
                    0 => bytes[at] = rng.random_range(0..=255),
                    1 => bytes.truncate(at.max(1)),
                    2 => bytes.insert(at, b"{}[]\",:\\ \n0"[rng.random_range(0..11)]),
                    _ => {
                        let end = rng.random_range(at..bytes.len()) + 1;
                        let copied = bytes[at..end].to_vec();
                        bytes.splice(at..at, copied);
                    }
                }
            }
            std::fs::write(&file, &bytes).unwrap();
            let read = std::panic::catch_unwind(|| {
                read_rows(&file).map(|rows| rows.len()).map_err(|error| format!("{error:#}"))
            });
            let said = read.unwrap_or_else(|_| panic!("kind {kind} {name}, seed {seed_number}: a panic"));
            if let Err(error) = said {
                assert!(error.contains("rows.") && error.len() < 20_000, "kind {kind}, seed {seed_number}: {error}");
            }
        }
    }
}

/// The project's sample of real triples, where the checkout has the shared folder beside it or in it.
#[test]
fn every_real_triple_is_read() {
    let roots = [".", "..", "../.."].map(|up| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(up));
    let mut files = roots
        .iter()
        .flat_map(|root| [root.join("shared"), root.join("../shared")])
        .map(|shared| shared.join("data/train/triples_mini.jsonl.gz"));
    let Some(file) = files.find(|file| file.exists()) else {
        eprintln!("skipped: no shared/data/train/triples_mini.jsonl.gz near the checkout");
        return;
    };
    let rows = read_rows(&file).unwrap();
    assert_eq!(rows.len(), 10_807);
    assert_eq!(rows.iter().filter(|row| row.output_en.is_some()).count(), 6_283);
}
