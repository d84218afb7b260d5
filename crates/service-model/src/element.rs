//! Reading elements and attributes, noting every error on the way.

use std::collections::HashSet;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::str::FromStr;

use roxmltree::{Document, Node};

use crate::diagnostic::{Diagnostics, Source};
use crate::nearest::with_nearest;

/// Collects errors while a file is read.
pub(crate) struct Reader<'s> {
    pub(crate) source: &'s Source,
    pub(crate) diagnostics: Diagnostics,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s Source) -> Reader<'s> {
        Reader { source, diagnostics: Diagnostics::default() }
    }

    /// Parses the file's XML and checks its root.
    pub(crate) fn document(&mut self, root: &str, namespace: &str) -> Option<Document<'s>> {
        let source: &'s Source = self.source;
        let document = match Document::parse(&source.text) {
            Ok(document) => document,
            Err(error) => {
                let at = self.offset(error.pos());
                self.error(at..at, &format!("this is not well-formed XML: {error}"), "here", None);
                return None;
            }
        };
        let element = document.root_element();
        let tag = element.tag_name();
        if tag.name() != root || tag.namespace() != Some(namespace) {
            let range = start_tag(self.source, element);
            let help = format!("the file has to start with <{root} xmlns=\"{namespace}\">");
            let message = format!("expected <{root}>, found <{}>", tag.name());
            let message = if tag.name() == root { format!("<{root}> is in the wrong namespace") } else { message };
            self.error(range, &message, "not what belongs here", Some(&help));
            return None;
        }
        Some(document)
    }

    pub(crate) fn error(&mut self, range: Range<usize>, message: &str, label: &str, help: Option<&str>) {
        self.diagnostics.push(self.source, range, message, label, help);
    }

    /// An error about an element.
    pub(crate) fn error_at(&mut self, node: Node<'_, '_>, message: &str, help: Option<&str>) {
        self.error(start_tag(self.source, node), message, "here", help);
    }

    /// An error about an attribute's value.
    pub(crate) fn error_in(&mut self, node: Node<'_, '_>, attribute: &str, message: &str, help: Option<&str>) {
        let range = node
            .attribute_node(attribute)
            .map_or_else(|| start_tag(self.source, node), |attribute| attribute.range_value());
        self.error(range, message, "here", help);
    }

    /// The children of `node`, each of which has to be one of `known`.
    pub(crate) fn children<'a, 'i>(&mut self, node: Node<'a, 'i>, known: &[&str]) -> Vec<Node<'a, 'i>> {
        let mut children = Vec::new();
        for child in node.children().filter(Node::is_element) {
            let name = child.tag_name().name();
            if child.tag_name().namespace() != node.tag_name().namespace() {
                continue;
            }
            if known.contains(&name) {
                children.push(child);
            } else {
                let help = format!("<{}> may hold {}", node.tag_name().name(), list(known));
                let help = with_nearest(name, known.iter().copied(), &help);
                let message = format!("unknown element <{name}> in <{}>", node.tag_name().name());
                self.error_at(child, &message, Some(&help));
            }
        }
        children
    }

    /// The only child of that name.
    pub(crate) fn child<'a, 'i>(&mut self, children: &[Node<'a, 'i>], name: &str) -> Option<Node<'a, 'i>> {
        let mut found = children.iter().copied().filter(|child| child.has_tag_name_local(name));
        let first = found.next();
        if let Some(second) = found.next() {
            self.error_at(second, &format!("<{name}> stands here a second time"), None);
        }
        first
    }

    /// Notes attributes that are none of `known`. Attributes with a namespace are other people's.
    pub(crate) fn attributes(&mut self, node: Node<'_, '_>, known: &[&str]) {
        for attribute in node.attributes().filter(|attribute| attribute.namespace().is_none()) {
            if !known.contains(&attribute.name()) {
                let message = format!("unknown attribute `{}` of <{}>", attribute.name(), node.tag_name().name());
                let help = format!("<{}> may have {}", node.tag_name().name(), list(known));
                let help = with_nearest(attribute.name(), known.iter().copied(), &help);
                self.error(attribute.range_qname(), &message, "unknown", Some(&help));
            }
        }
    }

    /// The value of an attribute that has to be there.
    pub(crate) fn required<'a>(&mut self, node: Node<'a, '_>, attribute: &str) -> Option<&'a str> {
        let value = node.attribute(attribute);
        match value {
            None => {
                self.error_at(node, &format!("<{}> lacks the attribute `{attribute}`", node.tag_name().name()), None);
            }
            Some("") => self.error_in(node, attribute, &format!("the attribute `{attribute}` is empty"), None),
            Some(_) => {}
        }
        value.filter(|value| !value.is_empty())
    }

    /// A whole number within `range`, or `default` where the attribute is missing.
    pub(crate) fn number<T>(&mut self, node: Node<'_, '_>, attribute: &str, range: RangeInclusive<T>, default: T) -> T
    where
        T: FromStr + PartialOrd + Copy + Display,
    {
        let Some(text) = node.attribute(attribute) else { return default };
        match text.trim().parse() {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let message = format!("`{text}` is not a whole number from {} to {}", range.start(), range.end());
                self.error_in(node, attribute, &message, None);
                default
            }
        }
    }

    /// `true` or `false`, or `default` where the attribute is missing.
    pub(crate) fn flag(&mut self, node: Node<'_, '_>, attribute: &str, default: bool) -> bool {
        match node.attribute(attribute).map(str::to_ascii_lowercase).as_deref() {
            None => default,
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(other) => {
                self.error_in(node, attribute, &format!("`{other}` is neither `true` nor `false`"), None);
                default
            }
        }
    }

    /// One of a few values.
    pub(crate) fn choice<T: Copy>(&mut self, node: Node<'_, '_>, attribute: &str, values: &[(&str, T)]) -> Option<T> {
        let text = self.required(node, attribute)?;
        let found = values.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
            self.error_in(node, attribute, &format!("`{text}` is not {}", list(&names)), None);
        }
        found
    }

    /// A name that nothing else in `seen` has.
    pub(crate) fn unique<'a>(
        &mut self,
        node: Node<'a, '_>,
        attribute: &str,
        seen: &mut HashSet<String>,
    ) -> Option<&'a str> {
        let name = self.required(node, attribute)?;
        // Names become labels in DNS, where case and these two do not differ.
        if !seen.insert(name.to_ascii_lowercase().replace('_', "-")) {
            self.error_in(node, attribute, &format!("`{name}` is taken already"), None);
        }
        Some(name)
    }

    fn offset(&self, position: roxmltree::TextPos) -> usize {
        let line_start: usize =
            self.source.text.split_inclusive('\n').take(position.row as usize - 1).map(str::len).sum();
        let line = &self.source.text[line_start..];
        line_start + line.char_indices().nth(position.col as usize - 1).map_or(line.len(), |(at, _)| at)
    }
}

/// Matching by local name: the namespace has been checked already.
pub(crate) trait HasLocalName {
    fn has_tag_name_local(&self, name: &str) -> bool;
}

impl HasLocalName for Node<'_, '_> {
    fn has_tag_name_local(&self, name: &str) -> bool {
        self.tag_name().name() == name
    }
}

fn start_tag(source: &Source, node: Node<'_, '_>) -> Range<usize> {
    let range = node.range();
    let end = source.text[range.clone()].find('>').map_or(range.end, |at| range.start + at + 1);
    range.start..end
}

fn list(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|name| format!("`{name}`")).collect();
            format!("{} or `{last}`", first.join(", "))
        }
    }
}
