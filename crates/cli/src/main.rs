//! `mayfly`: the command line, the processes behind it, and the dev fabric.

mod address;
mod arguments;
mod breaker;
mod certificate;
mod connection;
mod console;
mod controller;
mod dev;
mod event;
mod failure;
mod host;
mod image;
mod instance;
mod internal;
mod net;
mod output;
mod service;
mod token;
mod vhd;
mod wait;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command, ControllerCommand};
use connection::Connection;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failure::print(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    // These change namespaces or run a server of their own, so no runtime may be there yet.
    let command = match arguments.command {
        Command::Internal(command) => return internal::run(command),
        Command::Vhd(command) => return vhd::run(arguments.output, command),
        Command::Controller(ControllerCommand::Restore { file, target }) => {
            return controller::restore(&file, &target);
        }
        Command::Controller(ControllerCommand::Migrate { from, target }) => {
            return controller::migrate(&from, &target);
        }
        Command::Dev(command) => return dev::run(&arguments.state, arguments.output, command),
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connection = Connection::find(&arguments.state, arguments.output)?;
        match command {
            Command::Image(command) => image::run(&connection, command).await,
            Command::Service(command) => service::run(&connection, command).await,
            Command::Address(command) => address::run(&connection, command).await,
            Command::Certificate(command) => certificate::run(&connection, command).await,
            Command::Instance(command) => instance::run(&connection, command).await,
            Command::Net(command) => net::run(&connection, command).await,
            Command::Host(command) => host::run(&connection, command).await,
            Command::Controller(ControllerCommand::Backup { file }) => controller::backup(&connection, &file).await,
            Command::Token(command) => token::run(&connection, command).await,
            Command::Breaker(command) => breaker::run(&connection, command).await,
            Command::Event(command) => event::run(&connection, command).await,
            Command::Controller(_) | Command::Dev(_) | Command::Internal(_) | Command::Vhd(_) => Ok(()),
        }
    })
}
