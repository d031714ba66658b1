// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IPaymentChannels} from "../src/interfaces/IPaymentChannels.sol";
import {ChannelsHandler} from "./handlers/ChannelsHandler.sol";
import {IOcto, Shipped} from "./utils/Shipped.sol";

/// @title What holds after any sequence of calls by anyone
/// @dev Each was seen to fail: tests/contracts/test_mutants.py removes one line of the contracts at a time.
contract PaymentChannelsInvariants is Shipped {
    IOcto private octo;
    IPaymentChannels private channels;
    ChannelsHandler private handler;

    function setUp() external {
        vm.warp(1_800_000_000);
        octo = deployOcto();
        channels = deployChannels(octo, "octo-test", 1 days);
        handler = new ChannelsHandler(octo, channels);
        address[4] memory rich = [address(handler), handler.SPONSOR(), handler.payers(0), handler.payers(1)];
        for (uint256 i = 0; i < rich.length; i++) {
            octo.transfer(rich[i], 1_000_000 ether);
        }
        // A campaign has something to play with.
        for (uint256 i = 0; i < 8; i++) {
            handler.open(i, 100 ether);
        }
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(handler);
    }

    function invariant_solvency() external view {
        uint256 owed;
        for (uint256 i = 0; i < handler.count(); i++) {
            (, bytes32 id,) = handler.channelAt(i);
            IPaymentChannels.Channel memory held = channels.channel(id);
            owed += held.deposit - held.redeemed;
        }
        vm.assertEq(octo.balanceOf(address(channels)), owed + handler.gifts(), "the escrow holds what it owes");
    }

    function invariant_neverMoreThanSigned() external view {
        for (uint256 i = 0; i < handler.count(); i++) {
            (, bytes32 id, ChannelsHandler.Book memory book) = handler.channelAt(i);
            vm.assertLe(book.paidOut, book.signed, "paid no more than was signed");
            vm.assertLe(book.paidOut, book.paidIn, "paid no more than was paid in");
            vm.assertEq(channels.channel(id).redeemed, book.paidOut, "redeemed is what was paid");
        }
        for (uint256 p = 0; p < 2; p++) {
            uint256 sum;
            for (uint256 i = 0; i < handler.count(); i++) {
                (IPaymentChannels.Terms memory terms,, ChannelsHandler.Book memory book) = handler.channelAt(i);
                if (terms.payee == handler.payees(p)) sum += book.paidOut;
            }
            vm.assertEq(octo.balanceOf(handler.payees(p)), sum, "a payee has what its channels paid");
        }
    }

    function invariant_payerGetsTheRest() external view {
        for (uint256 i = 0; i < handler.count(); i++) {
            (, bytes32 id, ChannelsHandler.Book memory book) = handler.channelAt(i);
            IPaymentChannels.Channel memory held = channels.channel(id);
            if (book.closed) {
                vm.assertEq(book.refunded, book.paidIn - book.paidOut, "closed: the rest went to the payer");
                vm.assertEq(held.deposit, held.redeemed, "closed: nothing is left");
                vm.assertEq(held.closesAt, type(uint64).max, "closed is for ever");
            } else {
                vm.assertEq(book.refunded, 0, "nothing goes back before the close");
                vm.assertEq(held.deposit, book.paidIn, "the deposit is all that was paid in");
            }
        }
    }
}
