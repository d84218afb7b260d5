//! The rule set of a host as data, and the smallest script that leads from one to another.
//!
//! What changes often stands in named chains and in elements of named sets and maps, so that a change costs what changes
//! and not what is there: with a thousand public addresses, taking a backend out adds an element to a set,
//! and touches a chain at the most.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

/// The table of addresses and ports.
pub const TABLE: &str = "inet mayfly";
/// The table of what comes in from outside.
pub const INGRESS_TABLE: &str = "netdev mayfly";

/// Rows of numbers by keys.
pub type Rows = BTreeMap<String, Vec<u32>>;

/// A rule set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Its family and name. Without a frame, there is none.
    pub table: &'static str,
    /// Chains with hooks, and whatever else hardly ever changes: a script by itself.
    pub frame: String,
    /// Named sets and maps.
    pub sets: BTreeMap<String, Elements>,
    /// Named chains without hooks, with their rules, a line each.
    pub chains: BTreeMap<String, String>,
    /// Named maps from keys with a number from 0 at their end to other numbers, with their types: one for each number of a row.
    /// There may be very many, so they become text only where they change.
    pub rows: BTreeMap<String, (String, Arc<Rows>)>,
    /// Sets and maps whose elements are not the plan's, as they come and go with time; with their type. A change of the type needs
    /// another name, as the one that is there stays.
    pub kept: BTreeMap<String, (Kind, String)>,
    /// Named counters; they go on counting through changes.
    pub counters: BTreeSet<String>,
}

/// A named set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elements {
    /// `set` or `map`.
    pub kind: Kind,
    /// Its type, and its flags if it has any, as nftables writes them.
    pub declaration: String,
    /// Keys, and for maps what they lead to.
    pub elements: BTreeMap<String, String>,
}

/// Whether elements lead to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They do not.
    Set,
    /// They do.
    Map,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Set => "set",
            Kind::Map => "map",
        }
    }
}

impl Elements {
    /// An empty set of this type.
    pub fn set(declaration: &str) -> Elements {
        Elements { kind: Kind::Set, declaration: declaration.to_owned(), elements: BTreeMap::new() }
    }

    /// An empty map of this type.
    pub fn map(declaration: &str) -> Elements {
        Elements { kind: Kind::Map, declaration: declaration.to_owned(), elements: BTreeMap::new() }
    }

    /// This set with these elements.
    pub fn with(mut self, keys: impl IntoIterator<Item = String>) -> Elements {
        self.elements.extend(keys.into_iter().map(|key| (key, String::new())));
        self
    }
}

impl Ruleset {
    /// The rule set without anything, of this table.
    pub fn new(table: &'static str) -> Ruleset {
        Ruleset {
            table,
            frame: String::new(),
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            rows: BTreeMap::new(),
            kept: BTreeMap::new(),
            counters: BTreeSet::new(),
        }
    }

    /// The script that makes the table this rule set, whatever it was before. `present` are the chains and sets that are
    /// there; those that are not wanted go. Elements of [`kept`](Ruleset::kept) sets stay.
    pub fn whole(&self, present: &Present) -> String {
        let table = self.table;
        if self.frame.is_empty() {
            // Not even tried where the kernel may not know such tables.
            let there = *present != Present::default();
            return if there { format!("delete table {table}\n") } else { String::new() };
        }
        let mut text = format!("add table {table}\n");
        let named = [(Kind::Set, &present.sets), (Kind::Map, &present.maps)];
        let named = named.iter().flat_map(|(kind, names)| names.iter().map(|name| (kind.word(), name)));
        let others: Vec<_> = named.filter(|(_, name)| !self.kept.contains_key(*name)).collect();
        // References go before what they refer to.
        for (kind, name) in &others {
            let _ = writeln!(text, "flush {kind} {table} {name}");
        }
        let _ = writeln!(text, "flush table {table}");
        for name in present.chains.iter().filter(|name| !self.chains.contains_key(*name)) {
            let _ = writeln!(text, "delete chain {table} {name}");
        }
        for (kind, name) in &others {
            let _ = writeln!(text, "delete {kind} {table} {name}");
        }
        for name in present.counters.iter().filter(|name| !self.counters.contains(*name)) {
            let _ = writeln!(text, "delete counter {table} {name}");
        }
        let nothing = Ruleset::new(table);
        self.declare(&mut text, &nothing);
        text.push_str(&self.frame);
        self.fill(&mut text, &nothing);
        text
    }

    /// The script that leads from `before`, which is exactly what the kernel holds, to this rule set.
    pub fn change(&self, before: &Ruleset) -> String {
        match (before.frame.is_empty(), self.frame.is_empty()) {
            (true, true) => return String::new(),
            (false, true) => return format!("delete table {}\n", self.table),
            (true, false) => return self.whole(&Present::default()),
            (false, false) => {}
        }
        let (mut text, table) = (String::new(), self.table);
        self.declare(&mut text, before);
        if self.frame != before.frame {
            text.push_str(&self.frame);
        }
        self.fill(&mut text, before);
        // What is gone is not referred to any more.
        for name in before.chains.keys().filter(|name| !self.chains.contains_key(*name)) {
            let _ = writeln!(text, "flush chain {table} {name}");
        }
        for name in before.chains.keys().filter(|name| !self.chains.contains_key(*name)) {
            let _ = writeln!(text, "delete chain {table} {name}");
        }
        for (name, set) in before.sets.iter().filter(|(name, _)| !self.sets.contains_key(*name)) {
            let _ = writeln!(text, "delete {} {table} {name}", set.kind.word());
        }
        for name in before.counters.difference(&self.counters) {
            let _ = writeln!(text, "delete counter {table} {name}");
        }
        for name in before.rows.keys().filter(|name| !self.rows.contains_key(*name)) {
            let _ = writeln!(text, "delete map {table} {name}");
        }
        for (name, (kind, _)) in before.kept.iter().filter(|(name, _)| !self.kept.contains_key(*name)) {
            let _ = writeln!(text, "delete {} {table} {name}", kind.word());
        }
        text
    }

    fn declare(&self, text: &mut String, before: &Ruleset) {
        let table = self.table;
        for (name, (kind, declaration)) in self.kept.iter().filter(|(name, _)| !before.kept.contains_key(*name)) {
            let _ = writeln!(text, "add {} {table} {name} {{ {declaration} }}", kind.word());
        }
        for (name, (declaration, _)) in self.rows.iter().filter(|(name, _)| !before.rows.contains_key(*name)) {
            let _ = writeln!(text, "add map {table} {name} {{ {declaration} }}");
        }
        for (name, set) in self.sets.iter().filter(|(name, _)| !before.sets.contains_key(*name)) {
            let _ = writeln!(text, "add {} {table} {name} {{ {} }}", set.kind.word(), set.declaration);
        }
        for name in self.counters.difference(&before.counters) {
            let _ = writeln!(text, "add counter {table} {name}");
        }
        for name in self.chains.keys().filter(|name| !before.chains.contains_key(*name)) {
            let _ = writeln!(text, "add chain {table} {name}");
        }
    }

    fn fill(&self, text: &mut String, before: &Ruleset) {
        let table = self.table;
        for (name, rules) in &self.chains {
            match before.chains.get(name) {
                Some(same) if same == rules => continue,
                Some(_) => drop(writeln!(text, "flush chain {table} {name}")),
                None => {}
            }
            for rule in rules.lines() {
                let _ = writeln!(text, "add rule {table} {name} {}", rule.trim());
            }
        }
        let nothing = BTreeMap::new();
        for (name, set) in &self.sets {
            let known = before.sets.get(name).map_or(&nothing, |set| &set.elements);
            let gone = known.iter().filter(|(key, to)| set.elements.get(*key) != Some(to));
            elements(text, "delete", (table, name), gone.map(|(key, _)| key.clone()));
            let new = set.elements.iter().filter(|(key, to)| known.get(*key) != Some(to));
            let pair = |(key, to): (&String, &String)| match set.kind {
                Kind::Set => key.clone(),
                Kind::Map => format!("{key} : {to}"),
            };
            elements(text, "add", (table, name), new.map(pair));
        }
        for (name, (_, rows)) in &self.rows {
            let known = before.rows.get(name).map(|(_, rows)| rows);
            if known.is_some_and(|known| Arc::ptr_eq(known, rows)) {
                continue;
            }
            let nothing = Rows::new();
            let known = known.map_or(&nothing, |known| known);
            elements(
                text,
                "delete",
                (table, name),
                differences(known, rows).map(|(key, number, _)| format!("{key} . {number}")),
            );
            let new = differences(rows, known);
            elements(text, "add", (table, name), new.map(|(key, number, to)| format!("{key} . {number} : {to:#x}")));
        }
        for (name, set) in before.sets.iter().filter(|(name, _)| !self.sets.contains_key(*name)) {
            elements(text, "delete", (table, name), set.elements.keys().cloned());
        }
    }
}

/// What one has and the other has not: keys, places in the row, and what stands there.
fn differences<'a>(one: &'a Rows, other: &'a Rows) -> impl Iterator<Item = (&'a String, usize, u32)> {
    let rows = one.iter().map(|(key, row)| (key, row, other.get(key).map_or(&[][..], |row| row)));
    rows.filter(|(_, row, known)| row != known).flat_map(|(key, row, known)| {
        let new = row.iter().enumerate().filter(|(number, to)| known.get(*number) != Some(to));
        new.map(move |(number, to)| (key, number, *to))
    })
}

fn elements(text: &mut String, verb: &str, (table, name): (&str, &str), which: impl Iterator<Item = String>) {
    let which: Vec<String> = which.collect();
    if !which.is_empty() {
        let _ = writeln!(text, "{verb} element {table} {name} {{ {} }}", which.join(", "));
    }
}

/// What is in the kernel's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    /// Chains without hooks.
    pub chains: BTreeSet<String>,
    /// Named sets.
    pub sets: BTreeSet<String>,
    /// Named maps.
    pub maps: BTreeSet<String>,
    /// Named counters.
    pub counters: BTreeSet<String>,
}

impl Present {
    /// Reads what `list table` prints.
    pub fn read(listing: &str) -> Present {
        let mut present = Present::default();
        let mut lines = listing.lines().map(str::trim).peekable();
        while let Some(line) = lines.next() {
            let Some((kind, name)) = line.strip_suffix(" {").and_then(|line| line.split_once(' ')) else { continue };
            let hooked =
                lines.peek().is_some_and(|next| next.starts_with("type filter") || next.starts_with("type nat"));
            let _ = match kind {
                "chain" if !hooked => present.chains.insert(name.to_owned()),
                "set" => present.sets.insert(name.to_owned()),
                "map" => present.maps.insert(name.to_owned()),
                "counter" => present.counters.insert(name.to_owned()),
                _ => false,
            };
        }
        present
    }
}
