//! `inspect_policy`: what one Rego module uses, by regorus' own parser. Judges nothing.

use pyo3::prelude::*;
use regorus::Engine;
use regorus::unstable::{ArithOp, Expr, Literal, Module, Query, Ref, Rule, RuleHead, Span};

use crate::guards::GUARDED;
use crate::nesting::bounded;
use crate::policy::{refused, unpanicked};

/// One thing that a module uses, and where.
#[pyclass(frozen, get_all)]
pub struct PolicyUse {
    /// `package`, `import`, `call`, `with`, `stand-in` (what `with` puts there), `membership` (with a key), `operator`
    /// (only `/`), `number`, `function` (a rule with arguments) or `head` (a reference that goes on behind a variable).
    kind: &'static str,
    /// Dotted path: of the package, the import, the function called, or what `with` replaces; else the text.
    name: String,
    /// Of a call.
    arguments: usize,
    line: u32,
    column: u32,
}

#[pyfunction]
fn inspect_policy(python: Python<'_>, path: String, source: String) -> PyResult<Vec<PolicyUse>> {
    python.detach(|| {
        unpanicked(|| {
            bounded(&path, &source).map_err(|error| refused("policy", &error))?;
            let mut engine = Engine::new();
            engine
                .add_policy(path, source)
                .map_err(|error| refused("policy", &error))?;
            let mut uses = Uses(Vec::new());
            for module in engine.get_modules() {
                uses.module(module);
            }
            Ok(uses.0)
        })
    })
}

/// Arities of the built-ins that a guard stands before.
#[pyfunction]
fn guarded_builtins() -> Vec<(&'static str, u8)> {
    GUARDED
        .iter()
        .map(|&(name, arity, _)| (name, arity))
        .collect()
}

pub fn add_to(this: &Bound<'_, PyModule>) -> PyResult<()> {
    this.add_class::<PolicyUse>()?;
    this.add_function(wrap_pyfunction!(inspect_policy, this)?)?;
    this.add_function(wrap_pyfunction!(guarded_builtins, this)?)
}

struct Uses(Vec<PolicyUse>);

impl Uses {
    fn note(&mut self, kind: &'static str, name: String, arguments: usize, at: &Span) {
        self.0.push(PolicyUse {
            kind,
            name,
            arguments,
            line: at.line,
            column: at.col,
        });
    }

    fn module(&mut self, module: &Module) {
        self.note(
            "package",
            dotted(&module.package.refr),
            0,
            &module.package.span,
        );
        for import in &module.imports {
            self.note("import", dotted(&import.refr), 0, &import.span);
        }
        for rule in &module.policy {
            self.rule(rule);
        }
    }

    fn rule(&mut self, rule: &Rule) {
        match rule {
            Rule::Spec { head, bodies, .. } => {
                self.head(head);
                for body in bodies {
                    if let Some(assign) = &body.assign {
                        self.expr(&assign.value);
                    }
                    self.query(&body.query);
                }
            }
            Rule::Default {
                span,
                refr,
                args,
                value,
                ..
            } => {
                if !args.is_empty() {
                    self.note("function", dotted(refr), args.len(), span);
                }
                self.expr(refr);
                self.all(args);
                self.expr(value);
            }
        }
    }

    fn head(&mut self, head: &RuleHead) {
        let (refr, args, value) = match head {
            RuleHead::Compr { refr, assign, .. } => {
                (refr, &[][..], assign.as_ref().map(|a| &a.value))
            }
            RuleHead::Set { refr, key, .. } => (refr, &[][..], key.as_ref()),
            RuleHead::Func {
                refr, args, assign, ..
            } => (refr, args.as_slice(), assign.as_ref().map(|a| &a.value)),
        };
        if let RuleHead::Func { span, .. } = head {
            self.note("function", dotted(refr), args.len(), span);
        }
        if goes_on_behind_a_variable(refr) {
            self.note("head", dotted(refr), 0, refr.span());
        }
        self.expr(refr);
        self.all(args);
        self.all(value);
    }

    fn query(&mut self, query: &Query) {
        for stmt in &query.stmts {
            match &stmt.literal {
                Literal::SomeVars { .. } => {}
                Literal::SomeIn {
                    key,
                    value,
                    collection,
                    ..
                } => {
                    self.all(key);
                    self.expr(value);
                    self.expr(collection);
                }
                Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.expr(expr),
                Literal::Every { domain, query, .. } => {
                    self.expr(domain);
                    self.query(query);
                }
            }
            for replaced in &stmt.with_mods {
                self.note("with", dotted(&replaced.refr), 0, &replaced.span);
                self.note("stand-in", dotted(&replaced.r#as), 0, &replaced.span);
                self.expr(&replaced.refr);
                self.expr(&replaced.r#as);
            }
        }
    }

    fn all<'a>(&mut self, exprs: impl IntoIterator<Item = &'a Ref<Expr>>) {
        for expr in exprs {
            self.expr(expr);
        }
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. }
            | Expr::Var { .. } => {}
            Expr::Number { span, .. } => self.note("number", span.text().to_owned(), 0, span),
            Expr::Array { items, .. } | Expr::Set { items, .. } => self.all(items),
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.all([key, value]);
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.expr(term);
                self.query(query);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                self.all([key, value]);
                self.query(query);
            }
            Expr::Call {
                span, fcn, params, ..
            } => {
                self.note("call", dotted(fcn), params.len(), span);
                self.expr(fcn);
                self.all(params);
            }
            Expr::UnaryExpr { expr, .. } => self.expr(expr),
            Expr::RefDot { refr, .. } => self.expr(refr),
            Expr::RefBrack { refr, index, .. } => self.all([refr, index]),
            Expr::ArithExpr {
                span, op, lhs, rhs, ..
            } => {
                if *op == ArithOp::Div {
                    self.note("operator", "/".to_owned(), 2, span);
                }
                self.all([lhs, rhs]);
            }
            Expr::BinExpr { lhs, rhs, .. }
            | Expr::BoolExpr { lhs, rhs, .. }
            | Expr::AssignExpr { lhs, rhs, .. } => self.all([lhs, rhs]),
            Expr::Membership {
                span,
                key,
                value,
                collection,
                ..
            } => {
                if key.is_some() {
                    self.note("membership", "key, value in collection".to_owned(), 0, span);
                }
                self.all(key);
                self.all([value, collection]);
            }
        }
    }
}

/// Whether some part but the last is neither a name nor a constant, as in `p[x].r`.
fn goes_on_behind_a_variable(head: &Expr) -> bool {
    let (Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. }) = head else {
        return false;
    };
    match refr.as_ref() {
        Expr::RefBrack { index, .. }
            if !matches!(index.as_ref(), Expr::String { .. } | Expr::RawString { .. }) =>
        {
            true
        }
        inner => goes_on_behind_a_variable(inner),
    }
}

/// The path that a reference names, as far as it is written out.
fn dotted(expr: &Expr) -> String {
    match expr {
        Expr::Var { span, .. } => span.text().to_owned(),
        Expr::RefDot { refr, field, .. } => format!("{}.{}", dotted(refr), field.0.text()),
        Expr::RefBrack { refr, index, .. } => format!("{}.{}", dotted(refr), index_text(index)),
        other => other.span().text().to_owned(),
    }
}

fn index_text(index: &Expr) -> String {
    match index {
        Expr::String { value, .. } | Expr::RawString { value, .. } => value
            .as_string()
            .map(|text| text.to_string())
            .unwrap_or_default(),
        other => other.span().text().to_owned(),
    }
}
